"""`petalite predict` on a CPU: a first answer from a cold start, its peak memory, and JPEG files to a CSV.

    python benchmarks/cpu_predict.py --checkpoint runs/q/int8-channel --photos shared/data/flowers102/test

Cold start: the whole command for one photo, in processes of their own, compiled graphs on disk (the first run, which
makes them, is a row too). Memory: the largest resident set of that process, without its children. Pipeline: images/s
from the photos to the CSV, beside what decoding alone and the model alone reach on the same cores; `allowed` is what
the two together allow where both want all cores, 1 / (1/decode + 1/model).
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from petalite.checkpoint import read_checkpoint
from petalite.data import Preprocess, load_batches
from petalite.engine import load
from petalite.measure.environment import environment, hardware
from petalite.prediction import predict

COLUMNS = ("checkpoint", "measure", "value", "unit", "note")


def timed_process(arguments: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of `petalite` with these arguments. Raises RuntimeError where it fails."""
    start = time.perf_counter()
    process = os.posix_spawn(sys.executable, [sys.executable, "-m", "petalite", *arguments], os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"petalite {arguments[0]} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def cold_starts(checkpoint: Path, photo: Path, runs: int, folder: Path) -> list[tuple[str, float, str, str]]:
    """Rows of the first run, which compiles, and of `runs` after it."""
    os.environ["PETALITE_CACHE"] = str(folder / "cache")
    rows = []
    for run in range(runs + 1):
        out = folder / f"{run}.csv"
        seconds, peak = timed_process(["predict", str(checkpoint), str(photo), "--out", str(out), "--no-gallery", "-q"])
        note = f"run {run}" if run else "nothing on disk yet"
        rows += [("cold start", round(seconds, 3), "s", note), ("peak memory", peak, "bytes", note)]
    return rows


def pipeline(checkpoint: Path, photos: list[Path], batch: int, folder: Path) -> list[tuple[str, float, str, str]]:
    """Rows of decoding alone, the model alone, and the whole."""
    preprocess = Preprocess.from_config(read_checkpoint(checkpoint).config)
    pixels = torch.randint(0, 256, (batch, 3, *preprocess.size), dtype=torch.uint8)
    classifier = load(checkpoint, "cpu")
    classifier.logits(pixels)
    rounds: dict[str, list[float]] = {"decoding": [], "model": [], "predict": []}
    for index in range(3):
        start = time.perf_counter()
        seen = sum(len(part.indices) for part in load_batches(photos, preprocess, batch))
        rounds["decoding"].append(seen / (time.perf_counter() - start))
        start = time.perf_counter()
        passes = max(1, len(photos) // batch)
        for _ in range(passes):
            classifier.logits(pixels)
        rounds["model"].append(passes * batch / (time.perf_counter() - start))
        summary = predict(checkpoint, photos, folder / f"all-{index}.csv", device="cpu", batch_size=batch)
        rounds["predict"].append(summary["images_per_s"])
    best = {name: max(rates) for name, rates in rounds.items()}
    allowed = 1 / (1 / best["decoding"] + 1 / best["model"])
    rows = [(name, round(rate, 1), "images/s", f"best of 3, {len(photos)} photos") for name, rate in best.items()]
    return [*rows, ("allowed", round(allowed, 1), "images/s", ""),
            ("share of allowed", round(best["predict"] / allowed, 3), "", f"batches of {batch}")]  # fmt: skip


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of JPEG files, searched all the way down")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--skip-pipeline", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    photos = sorted(options.photos.rglob("*.jpg"))
    rows: list[tuple[Any, ...]] = []
    with tempfile.TemporaryDirectory() as temporary:
        rows += cold_starts(options.checkpoint, photos[0], options.runs, Path(temporary))
        if not options.skip_pipeline:
            rows += pipeline(options.checkpoint, photos, options.batch, Path(temporary))
    machine = environment()
    where = hardware(machine).replace(", ", "-").replace(" ", "-").replace("/", "-")
    name = f"{read_checkpoint(options.checkpoint).config['architecture']}-{options.checkpoint.name}"
    versions = f"torch-{machine['versions']['torch']}-openvino-{metadata.version('openvino')}".replace("+", "-")
    path = options.out / f"cpu-predict_{name}_{where}_{versions}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((options.checkpoint.name, *row) for row in rows)
    print(path.read_text())


if __name__ == "__main__":
    main()
