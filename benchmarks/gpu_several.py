"""How near several GPUs of one host come to several times one: the first of them, the first two, and so on, in turns.

    python benchmarks/gpu_several.py --devices cuda:all
    python benchmarks/gpu_several.py --devices cpu --model tiny --batch 4 --seconds 0.1       # tries the flow

Random weights and images. Two ways: batches that lie in the host's memory, streamed through (what `predict` and
`evaluate` do), and one batch on the first GPU, as many times larger as there are GPUs, whose parts travel to the others.
In each round every number of GPUs has its turn; rates are medians over rounds. How far the answers are from those of the
first GPU is a column.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_candidates import random_images
from gpu_pipeline import made_checkpoint
from result_files import result_path, write_rows
from torch import Tensor

from petalite.engine import Classifier, load
from petalite.engine.several import Several, device_names
from petalite.engine.stream import stream
from petalite.measure.environment import environment, hardware

#: More copies of the batch lie in memory than are under way at once.
_BATCHES = 8
Passes = Callable[[int], Tensor]


def streamed(engines: Several, batches: Sequence[Tensor]) -> Passes:
    """So many batches from the host's memory through all engines; all logits, in order."""

    def run(count: int) -> Tensor:
        source = (batches[index % len(batches)] for index in range(count))
        only = engines.engines[0] if len(engines.engines) == 1 else None
        logits = engines.stream(source) if only is None else stream(only.forward, source, only.device)
        return torch.cat(list(logits))

    return run


def split(engines: Several, pixels: Tensor) -> Passes:
    """So many passes of a batch on the first device, each divided among all; the last one's logits."""

    def run(count: int) -> Tensor:
        for _ in range(count):
            logits = engines.forward(pixels)
        return logits.float().cpu()

    return run


def rate(passes: Passes, seconds: float) -> float:
    """Passes a second, from the first being asked for to the last one's answer on the host."""
    started = time.perf_counter()
    passes(3)
    count = max(6, round(3 * seconds / (time.perf_counter() - started)))
    started = time.perf_counter()
    passes(count)
    return count / (time.perf_counter() - started)


def measure(classifiers: Sequence[Classifier], batch: int, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """A row for each way and number of GPUs."""
    size = classifiers[0].preprocess.size
    images = random_images(batch, size)
    batches = [images.clone() for _ in range(_BATCHES)]
    ways: dict[tuple[str, int], Passes] = {}
    for count in range(1, len(classifiers) + 1):
        engines = Several([classifier.runner for classifier in classifiers[:count]])
        ways["batches from the host", count] = streamed(engines, batches)
        ways["one batch divided", count] = split(engines, torch.cat([images] * count).to(classifiers[0].device))
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    expected = classifiers[0].logits(images)
    differs = {}
    for name, passes in ways.items():  # a batch for every engine at least: graphs are recorded
        answers = passes(2 * len(classifiers)).split(batch)
        differs[name] = max(float((answer - expected).abs().max()) for answer in answers)
    for _ in range(rounds):
        for name, passes in ways.items():
            images_a_pass = batch * (name[1] if name[0] == "one batch divided" else 1)
            rates[name].append(images_a_pass * rate(passes, seconds))
    return [
        {
            "way": way,
            "gpus": count,
            "batch_size": batch,
            "images_per_s": round(median(found), 1),
            "times_one": round(median(found) / median(rates[way, 1]), 3),
            "largest_difference": differs[way, count],
            "rounds": " ".join(f"{value:.0f}" for value in found),
        }
        for (way, count), found in rates.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="cuda:all", help="cuda:all, cuda:0,1, …")
    parser.add_argument("--model", default="vit_large_patch16_224", help="a timm name, or 'tiny'")
    parser.add_argument("--format", default="int4")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = made_checkpoint(options.model, options.format, Path(folder) / "checkpoints")
        classifiers = [load(checkpoint, name) for name in device_names(options.devices)]
    machine, info = environment(), classifiers[0].info
    known = {"model": options.model, "format": options.format, "engine": info.engine, "compute": info.compute}
    rows = [
        {**known, **row, "hardware": hardware(machine), "torch": machine["versions"]["torch"]}
        for row in measure(classifiers, options.batch, options.seconds, options.rounds)
    ]
    for row in rows:
        print(*row.values(), sep="\t")
    path = result_path(options.out, "gpu-several")
    write_rows(path, rows)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
