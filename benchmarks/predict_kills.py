"""Kill `petalite predict` with SIGKILL at random moments, resume it each time, and compare with an undisturbed run.

    python benchmarks/predict_kills.py --checkpoint runs/q/int8-channel --images ../shared/data/flowers102 --kills 20

Every image has to be there exactly once, and the file has to be the same byte for byte. The moments spread over the whole
run, its start and its end included: one that ends before its moment is compared and begun anew, until all kills are done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from result_files import result_path, write_rows

from petalite.prediction.parts import Parts
from petalite.prediction.sources import entries
from petalite.prediction.tables import table_of


def start(options: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    """Begin, or go on, in a process of its own."""
    command = [sys.executable, "-m", "petalite", "predict", str(options.checkpoint), *options.images, "--out", str(out)]
    command += ["--resume", "--no-gallery", "--json", "--batch-size", str(options.batch_size)]
    return subprocess.Popen([*command, "--engine", options.engine, "--device", options.device], stdout=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The summary of a run that is left alone."""
    text, _ = process.communicate()
    if process.returncode not in (0, 1):
        raise SystemExit(f"petalite predict ended with exit code {process.returncode}")
    summary: dict[str, Any] = json.loads(text)
    return summary


def kept(out: Path) -> int:
    """Images in the parts that a killed run has left."""
    parts = Parts(out, table_of(out))
    return sum(int(file.name.split("-")[1]) for file in parts.folder.glob(f"[0-9]*{parts.table.ending}"))


def problems(out: Path, whole: Path, names: Sequence[str]) -> list[str]:
    """What is wrong with a file that was killed and resumed."""
    found = []
    counted = Counter(row["path"] for row in table_of(out).read(out))
    if missing := [name for name in names if name not in counted]:
        found.append(f"{len(missing)} missing")
    if again := [name for name, times in counted.items() if times > 1]:
        found.append(f"{len(again)} more than once")
    if extra := set(counted) - set(names):
        found.append(f"{len(extra)} unknown")
    if digest(out) != digest(whole):
        found.append("differs from the undisturbed run")
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", nargs="+", required=True, help="files, folders, globs")
    parser.add_argument("--name", default="", help="of checkpoint and images, in the CSV's name")
    parser.add_argument("--ending", default=".csv", help="of the predictions: .csv, .jsonl or .parquet")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, kill, resume, compare, write the CSV; 0 when nothing differs."""
    options = parse(arguments)
    draw = random.Random(options.seed)
    names = [str(entry.source) for entry in entries(options.images) if not hasattr(entry, "path")]
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / f"whole{options.ending}"
        began = time.monotonic()
        summary = finish(start(options, whole))
        lasted = summary["seconds"]
        loading = time.monotonic() - began - lasted
        rate = summary["images_per_s"]
        print(f"undisturbed: {summary['images']} images, {loading:.1f} s to start, {lasted:.1f} s", flush=True)
        rows.append({"event": "undisturbed", "after_s": lasted, "images_kept": summary["images"], "images_per_s": rate})
        kills = ended = 0
        out = whole
        while kills < options.kills or not out.exists():
            out = Path(temporary) / f"parts-{ended}{options.ending}"
            process = start(options, out)
            # over the whole run: its start, its work, its end
            moment = draw.uniform(0, loading + 2 * lasted / options.kills) if kills < options.kills else None
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
                kills += 1
                rows.append({"event": f"kill {kills}", "after_s": f"{moment:.3f}", "images_kept": kept(out)})
                print(f"kill {kills}: after {moment:.1f} s, {kept(out)} images kept", flush=True)
                continue
            resumed = finish(process)["resumed"]
            found = problems(out, whole, names)
            wrong += found
            rows.append({"event": "ended", "images_kept": resumed, "outcome": "; ".join(found) or "the same"})
            print(f"ended: {rows[-1]['outcome']}", flush=True)
            ended += 1
    write(rows, options, summary)
    return 1 if wrong else 0


def write(rows: list[dict[str, Any]], options: argparse.Namespace, summary: dict[str, Any]) -> None:
    """The CSV: a line an event."""
    path = result_path(options.out, f"predict-kills{'_' if options.name else ''}{options.name}")
    columns = ["event", "after_s", "images_kept", "images_per_s", "outcome"]
    ran = {"engine": summary["info"]["engine"], "compute": summary["info"]["compute"], "format": options.ending[1:]}
    write_rows(path, [{**row, **ran} for row in rows], [*columns, *ran])
    print(path)


if __name__ == "__main__":
    sys.exit(main())
