"""From JPEG files to a predictions CSV: how near the whole comes to the slower of decoding alone and the model alone.

    python benchmarks/gpu_pipeline.py --images "photos/*.jpg" --count 8192 --workers 8,16
    python benchmarks/gpu_pipeline.py                       # JPEG files made for the purpose, random weights of ViT-L/16
    python benchmarks/gpu_pipeline.py --device cpu --model tiny --count 32 --batch 8 --workers 0       # tries the flow

Files are repeated in the list to reach `--count`, so they come from the page cache: the disk is not measured. Rates in
images/s: decoding in worker processes, and, where torchvision can, on the GPU; the model on a batch that lies there; the
model with its copies from and to the host; files to logits; and `petalite predict` from the list of files to the CSV.
What the latter adds up from is in the columns `seconds_*`; the rest are rows, the CSV, and the first passes of an engine
that has just been loaded. Starting the worker processes is part of all that decodes.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from gpu_candidates import TINY, random_images, random_materials
from gpu_rounds import wait_for
from PIL import Image
from result_files import result_path
from torch import Tensor

from petalite.checkpoint import write_checkpoint
from petalite.data import Preprocess, load_batches
from petalite.engine import Classifier, load
from petalite.measure.environment import environment, hardware
from petalite.measure.latency import count_forwards, warm_up
from petalite.prediction import expand, predict
from petalite.speed import random_checkpoints


def rows(options: argparse.Namespace, checkpoint: Path, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """One row for each number of workers."""
    classifier = load(checkpoint, options.device, options.attention, options.compute)
    batch, device, preprocess = options.batch, classifier.device, classifier.preprocess
    alone = model_rates(classifier, batch, options.seconds)
    on_device = device_decoding(paths, preprocess, device, batch)
    found = []
    for workers in options.workers.split(","):
        count = None if workers == "auto" else int(workers)
        decoding(paths[:batch], preprocess, batch, count)  # the first processes of a machine read what others find
        decoding_s, first_s, unreadable = decoding(paths, preprocess, batch, count)
        logits_s = timed(lambda count=count: files_to_logits(classifier, paths, batch, count))
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "predictions.csv"
            summary = predict(
                checkpoint, paths, out, device=options.device, attention=options.attention, compute=options.compute,
                batch_size=batch, workers=count,
            )  # fmt: skip
            lines = len(out.read_text(encoding="utf-8").splitlines()) - 1
        if lines != len(paths):
            raise SystemExit(f"{lines} rows for {len(paths)} files")
        decoding_rate, whole = len(paths) / decoding_s, len(paths) / summary["seconds"]
        found.append(
            {
                "images": len(paths),
                "unreadable": unreadable,
                "kilobytes_a_file": round(sum(path.stat().st_size for path in set(paths)) / 1e3 / len(set(paths)), 1),
                "workers": workers,
                "batch_size": batch,
                **{
                    key: classifier.info.as_dict()[key]
                    for key in ("format", "engine", "compute", "attention", "device")
                },
                "decoding_images_per_s": decoding_rate,
                "first_batch_s": first_s,
                **on_device,
                **alone,
                "logits_images_per_s": len(paths) / logits_s,
                "whole_images_per_s": whole,
                "bound": "decoding" if decoding_rate < alone["model_images_per_s"] else "model",
                "share_of_bound": whole / min(decoding_rate, alone["model_images_per_s"]),
                "seconds_decoding": decoding_s,
                "seconds_model_on_top": logits_s - decoding_s,
                "seconds_rest_on_top": summary["seconds"] - logits_s,
            }
        )
    return found


def model_rates(classifier: Classifier, batch: int, seconds: float) -> dict[str, float]:
    """Images/s of the model on a batch on the device, and of whole batches from the host's memory and back to it."""
    pixels = random_images(batch, classifier.preprocess.size)
    there = pixels.to(classifier.device)
    wait = wait_for(classifier.device)

    def forward() -> Tensor:
        return classifier.forward(there)

    warm_up(forward, wait)
    rate = count_forwards(forward, wait, seconds=seconds)
    count = max(4, round(rate * seconds))
    stream_s = timed(lambda: list(classifier.stream(pixels for _ in range(count))))
    return {"model_images_per_s": batch * rate, "stream_images_per_s": batch * count / stream_s}


def decoding(
    paths: Sequence[Path], preprocess: Preprocess, batch: int, workers: int | None
) -> tuple[float, float, int]:
    """Seconds to decode all files in worker processes, seconds until the first batch was there, files that failed."""
    started, first, failed = time.perf_counter(), 0.0, 0
    for one in load_batches(paths, preprocess, batch, workers):
        first = first or time.perf_counter() - started
        failed += len(one.errors)
    return time.perf_counter() - started, first, failed


def files_to_logits(classifier: Classifier, paths: Sequence[Path], batch: int, workers: int | None) -> int:
    """All logits of all files, thrown away; how many."""
    batches = load_batches(paths, classifier.preprocess, batch, workers)
    return sum(len(logits) for logits in classifier.stream(one.pixels for one in batches))


def device_decoding(paths: Sequence[Path], preprocess: Preprocess, device: torch.device, batch: int) -> dict[str, Any]:
    """Images/s of decoding, resizing and cropping on the GPU, files read by threads; or why that does not work.

    The geometry is that of the model, its resampling torchvision's: near, not equal, to what the model was trained with.
    """
    if device.type != "cuda":
        return {"device_decoding_images_per_s": None, "device_decoding_reason": "needs a CUDA device"}
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms.v2 import functional as transforms

    target = [int(side / preprocess.crop_pct) for side in preprocess.size]

    def batches() -> Iterator[Tensor]:
        with ThreadPoolExecutor(8) as threads:
            for start in range(0, len(paths), batch):
                files = list(threads.map(lambda path: read_file(str(path)), paths[start : start + batch]))
                images = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
                cut = [transforms.center_crop(resized(image), list(preprocess.size)) for image in images]
                yield torch.stack(cut)

    def resized(image: Tensor) -> Tensor:
        way = transforms.InterpolationMode.BICUBIC
        return transforms.resize(image, target[:1], interpolation=way, antialias=True)

    def run() -> None:
        for _ in batches():
            pass
        torch.cuda.synchronize(device)

    try:
        next(batches())
        return {"device_decoding_images_per_s": len(paths) / timed(run), "device_decoding_reason": None}
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"device_decoding_images_per_s": None, "device_decoding_reason": lines[0][:200]}


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes; its last result has reached the host."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def made_files(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """JPEG files of about what a photo of that size (height, width) takes."""
    folder.mkdir(parents=True)
    paths = []
    for index, pixels in enumerate(random_images(count, size, seed=2)):
        paths.append(folder / f"{index}.jpg")
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(paths[-1], quality=90)
    return paths


def made_checkpoint(model: str, format: str, folder: Path) -> Path:
    """Random weights of timm's model of that name, or of the tiny one, in a folder."""
    if model != TINY:
        return random_checkpoints(model, [format], folder)[format]
    made = random_materials(TINY, torch.device("cpu")).checkpoint(format)
    return write_checkpoint(folder / format, made.config, made.tensors, made.plan).path


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="random weights of --model when not given")
    parser.add_argument("--model", default="vit_large_patch16_224", help="a timm name, or 'tiny'")
    parser.add_argument("--format", default="int4", help="of the random weights")
    parser.add_argument("--images", nargs="*", default=[], help="files, folders, globs; made when not given")
    parser.add_argument("--size", default="500x667", help="of the files that are made, height x width")
    parser.add_argument("--count", type=int, default=8192, help="files in the list")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", default="auto", help="numbers of processes, with commas between them")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement of the model alone")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--compute", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, append to the CSV."""
    options = parse(arguments)
    machine = environment()
    height, width = (int(side) for side in options.size.split("x"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = options.checkpoint or made_checkpoint(options.model, options.format, folder / "checkpoints")
        files = expand(options.images) if options.images else made_files(folder / "files", 64, (height, width))
        found = rows(options, checkpoint, list(islice(cycle(files), options.count)))
    path = result_path(options.out, "gpu-pipeline")
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = str(options.checkpoint or f"{options.model} (random weights)")
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        for row in found:
            line = {"weights": weights, **row, "hardware": hardware(machine), "torch": machine["versions"]["torch"]}
            line = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in line.items()}
            writer = csv.DictWriter(file, list(line), lineterminator="\n")
            if fresh:
                writer.writeheader()
                fresh = False
            writer.writerow(line)
            print("\n".join(f"{key:32} {value}" for key, value in line.items()), end="\n\n")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
