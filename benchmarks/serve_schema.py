"""schemathesis against a running server: requests made from `/openapi.json`, good and bad, and what the answers must be.

    pip install schemathesis
    python benchmarks/serve_schema.py runs/q/int8-channel --photos ../shared/data/flowers102/test --examples 400

All of schemathesis' checks count, also that each request that the document allows is accepted and each one that it forbids
is refused. No schema can say which bytes are an image, nor that a shape counts them: `serve_schema_hooks.py` gives real
photos where the document says so. `--schemathesis` is the command, where it is installed elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from serve_load import write
from serve_server import Server


def main() -> int:
    """Run it, print and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=400, help="cases an operation at most, in each phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schemathesis", default="schemathesis", help="the command")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Server([options.checkpoint], "--queue", "64") as server:
        workers = server.workers()
        events = Path(folder) / "events.ndjson"
        command = [
            *(options.schemathesis, "run", f"{server.url}/openapi.json", "--checks", "all", "--mode", "all"),
            *("--max-examples", str(options.examples), "--seed", str(options.seed), "--continue-on-failure"),
            *("--report", "ndjson", "--report-ndjson-path", str(events), "--no-color"),
        ]
        hooks = {"SCHEMATHESIS_HOOKS": "serve_schema_hooks", "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(command, env={**os.environ, **hooks, "PHOTOS": str(options.photos)}, check=False)
        rows = counted(events)
        problems = [line for line in server.log().splitlines() if '"internal_error"' in line]
        problems += [] if server.workers() == workers else ["a worker ended"]
        code = server.stop()
        problems += [] if code == 0 else [f"exit code {code}"]
    write(options, "serve-schema", [{**row, "seed": options.seed} for row in rows])
    failures = sum(int(row["failed_checks"]) for row in rows)
    print(f"{sum(int(row['cases']) for row in rows)} cases, {failures} failed checks, {len(problems)} problems")
    print(*problems, sep="\n")
    return int(bool(done.returncode or failures or problems))


def counted(events: Path) -> list[dict[str, object]]:
    """Cases, checks and failures of each operation, out of schemathesis' report of events."""
    cases: Counter[str] = Counter()
    checks: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for line in events.read_text().splitlines():
        finished = json.loads(line).get("ScenarioFinished")
        recorder = finished["recorder"] if finished else {}
        for number, node in recorder.get("cases", {}).items():
            value = node["value"]
            operation = f"{value['method']} {value['path']}" if value["method"] in ("GET", "POST") else "other methods"
            found = recorder.get("checks", {}).get(number, [])
            cases[operation] += 1
            checks[operation] += len(found)
            failed[operation] += sum(check["status"] != "success" for check in found)
    return [
        {"operation": name, "cases": cases[name], "checks": checks[name], "failed_checks": failed[name]}
        for name in sorted(cases)
    ]


if __name__ == "__main__":
    raise SystemExit(main())
