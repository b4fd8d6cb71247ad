"""`petalite predict` on a CPU: a first answer from a cold start, its peak memory, and JPEG files to a CSV.

    python benchmarks/cpu_predict.py --checkpoint runs/q/int8-channel --photos shared/data/flowers102/test

Cold start: the whole command for one photo, in processes of their own, compiled graphs on disk (the first run, which
makes them, is a row too). Memory: the largest resident set of that process, without its children; once more with them,
as the largest sum of proportional sets that is seen in many looks. Beside both, OpenVINO alone: a script that imports the
same compiled graph, decodes and resizes the photo with Pillow, and answers. Pipeline: images/s
from the photos to the CSV, beside what decoding alone and the model alone reach on the same cores; `allowed` is what
the two together allow where both want all cores, 1 / (1/decode + 1/model).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from result_files import result_path, write_rows

from petalite.checkpoint import read_checkpoint
from petalite.data import Preprocess, load_batches
from petalite.engine import load
from petalite.prediction import predict

COLUMNS = ("checkpoint", "measure", "value", "unit", "note")
#: OpenVINO without Petalite: a compiled graph and a photo.
_ALONE = """
import sys
sys.modules["openvino_telemetry"] = None
import numpy, openvino
from PIL import Image
mapped = numpy.memmap(sys.argv[1], numpy.uint8, "c")
settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
request = openvino.Core().import_model(openvino.Tensor(mapped, shared_memory=True), "CPU", settings).create_infer_request()
height, width = request.get_input_tensor().shape[2:]
image = Image.open(sys.argv[2]).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
request.set_input_tensor(openvino.Tensor(numpy.asarray(image).transpose(2, 0, 1)[None].copy()))
request.infer()
print(request.get_output_tensor().data[0].argsort()[::-1][:5])
"""


#: A process starts with the peak of the one that it is forked from, so a small one starts it and tells.
_TIMED = """
import os, sys, time
start = time.perf_counter()
process = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(process, 0)
if status:
    sys.exit(1)
print(time.perf_counter() - start, usage.ru_maxrss * 1024)
"""


def timed_process(arguments: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of Python with these arguments. Raises RuntimeError where it fails."""
    done = subprocess.run([sys.executable, "-c", _TIMED, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:3])} failed")
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), int(peak)


def family_peak(arguments: list[str]) -> int:
    """Bytes of Python with these arguments and all processes that it starts: the most that is seen in many looks."""
    process = subprocess.Popen([sys.executable, *arguments])
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(proportional_bytes, family(process.pid))))
    return peak


def family(process: int) -> list[int]:
    """A process and its descendants."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(each for child in children for each in family(int(child)))]


def proportional_bytes(process: int) -> int:
    """Its own memory and its share of what it shares; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def cold_starts(checkpoint: Path, photo: Path, runs: int, folder: Path) -> list[tuple[str, float, str, str]]:
    """Rows of the first run, which compiles, and of `runs` after it."""
    os.environ["PETALITE_CACHE"] = str(folder / "cache")
    rows = []
    command = ["-m", "petalite", "predict", str(checkpoint), str(photo), "--no-gallery", "-q", "--force"]
    command += ["--out", str(folder / "one.csv")]
    for run in range(runs + 1):
        seconds, peak = timed_process(command)
        note = f"run {run}" if run else "nothing on disk yet"
        rows += [("cold start", round(seconds, 3), "s", note), ("peak memory", peak, "bytes", note)]
        if run:
            (graph,) = (folder / "cache" / "openvino").glob("*-1.blob")
            seconds, peak = timed_process(["-c", _ALONE, str(graph), str(photo)])
            note = f"openvino alone, {note}"
            rows += [("cold start", round(seconds, 3), "s", note), ("peak memory", peak, "bytes", note)]
    rows.append(("peak memory with workers", family_peak(command), "bytes", "proportional"))
    alone = family_peak(["-c", _ALONE, str(graph), str(photo)])
    return [*rows, ("peak memory with workers", alone, "bytes", "openvino alone, proportional")]


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
    name = f"{read_checkpoint(options.checkpoint).config['architecture']}-{options.checkpoint.name}"
    path = result_path(options.out, f"cpu-predict_{name}", "openvino")
    write_rows(path, [dict(zip(COLUMNS, (options.checkpoint.name, *row), strict=True)) for row in rows], COLUMNS)
    print(path.read_text())


if __name__ == "__main__":
    main()
