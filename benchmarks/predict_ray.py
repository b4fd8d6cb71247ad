"""`petalite predict` on this machine and on a Ray cluster of processes, one of which is killed in the middle.

    python benchmarks/predict_ray.py --checkpoint runs/q/int8-channel --images ../shared/data/flowers102

Both have to write the same file, byte for byte. Seconds are those of the whole run; the cluster's include its start.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from result_files import result_path, write_rows


def predicted(options: argparse.Namespace, out: Path, on: str, killed: list[float]) -> dict[str, Any]:
    """The summary of a run; on a cluster, with a worker killed once two parts are there."""
    command = [sys.executable, "-m", "petalite", "predict", str(options.checkpoint), *options.images, "--out", str(out)]
    command += ["--no-gallery", "--json", "--on", on, "--engine", options.engine, "--threads", str(options.threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if on == "ray":
        threading.Thread(target=kill_one, args=(process, out, killed), daemon=True).start()
    text, _ = process.communicate()
    if process.returncode not in (0, 1):
        raise SystemExit(f"petalite predict ended with exit code {process.returncode}")
    summary: dict[str, Any] = json.loads(text)
    return summary


def kill_one(process: subprocess.Popen[str], out: Path, killed: list[float]) -> None:
    """Kill one of the cluster's engines once two parts are there."""
    began = time.monotonic()
    while process.poll() is None:
        if len(list(out.with_name(f"{out.name}.parts").glob(f"[0-9]*{out.suffix}"))) >= 2:
            below = psutil.Process(process.pid).children(recursive=True)
            engines = [child for child in below if "MapWorker" in " ".join(child.cmdline())]
            os.kill(min(engine.pid for engine in engines), signal.SIGKILL)
            killed.append(time.monotonic() - began)
            return
        time.sleep(0.05)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", nargs="+", required=True, help="files, folders, globs, shards")
    parser.add_argument("--name", default="", help="of checkpoint and images, in the CSV's name")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of an engine, in both runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both, compare, write the CSV; 0 when they are the same."""
    options = parse(arguments)
    rows: list[dict[str, Any]] = []
    digests: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for on in ("local", "ray"):
            out, killed = Path(folder) / f"{on}.csv", list[float]()
            summary = predicted(options, out, on, killed)
            digests.append(hashlib.sha256(out.read_bytes()).hexdigest())
            names = ("images", "errors", "seconds", "images_per_s")
            ran = {name: summary["info"][name] for name in ("engine", "compute")}
            at = f"{killed[0]:.1f}" if killed else ""
            rows.append({"on": on, **{name: summary[name] for name in names}, "worker_killed_after_s": at, **ran})
            rows[-1]["outcome"] = "the same" if digests[-1] == digests[0] else "DIFFERENT"
            print(rows[-1], flush=True)
    path = result_path(options.out, f"predict-ray{'_' if options.name else ''}{options.name}")
    write_rows(path, rows)
    print(path)
    return 0 if len(set(digests)) == 1 and rows[-1]["worker_killed_after_s"] else 1


if __name__ == "__main__":
    sys.exit(main())
