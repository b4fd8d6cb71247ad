"""Token merging: what it costs in top-1 on labelled photos, and what it saves in time at a model's shape.

    python benchmarks/token_merging.py CHECKPOINT DATA --merge "0 4 8 16 0,0,24,0,0,24,0,0,24,0,0,0"

Accuracy is the checkpoint's, on the splits test and valid together. Time is that of random weights at the shapes of
`--models`, all settings in turn in one process, in rounds of which each begins with another one; what is reported is
the median, over the rounds, of a setting's time divided by that of no merging in the same round.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from result_files import result_path, write_rows

from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.data import load_batches, open_data
from petalite.engine import Classifier, load
from petalite.evaluation import check_classes
from petalite.measure.accuracy import score
from petalite.merging import parse_merge
from petalite.speed import random_checkpoints

MERGE = "0 2 4 8 12 16 0,0,24,0,0,24,0,0,24,0,0,0 0,0,32,0,0,32,0,0,32,0,0,0 0,0,64,0,0,0,0,0,0,0,0,0"


def merging(checkpoint: Checkpoint, text: str, options: argparse.Namespace) -> Classifier:
    """`checkpoint`, loaded with the tokens merged that `text` says."""
    merge = parse_merge(text, checkpoint.outline.depth)
    merged = replace(checkpoint, plan=replace(checkpoint.plan, merge=merge))
    return load(merged, options.device, options.attention, options.compute)


def accuracy(settings: list[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What `score` says of each setting, held against the first one, and the tokens merged away."""
    data = open_data(options.data)
    samples = [*data.splits["test"], *data.splits["valid"]]
    checkpoint = read_checkpoint(options.checkpoint)
    classifiers = {text: merging(checkpoint, text, options) for text in settings}
    check_classes(classifiers[settings[0]], data)
    logits = {text: torch.full((len(samples), len(data.classes)), torch.nan) for text in settings}
    for batch in load_batches([sample.path for sample in samples], classifiers[settings[0]].preprocess, 32):
        for text, classifier in classifiers.items():
            logits[text][batch.indices] = classifier.logits(batch.pixels)
    targets = torch.tensor([sample.target for sample in samples])
    return {
        text: {**score(own, targets, logits[settings[0]]), "merged_tokens": classifiers[text].info.merged_tokens}
        for text, own in logits.items()
    }


def time_ratios(model: str, batch_size: int, settings: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Time of a forward pass of each setting, as a multiple of the first one's."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = read_checkpoint(random_checkpoints(model, ["fp32"], folder)["fp32"])
    variants = [merging(checkpoint, text, options) for text in settings]
    batch = torch.randn(batch_size, 3, *variants[0].info.image_size)
    for variant in variants:
        for _ in range(3):
            variant.logits(batch)
    ratios: list[list[float]] = [[] for _ in variants]
    started = time.perf_counter()
    begins = 0
    while time.perf_counter() - started < options.seconds or begins < 10:
        seconds = [0.0] * len(variants)
        for turn in range(len(variants)):
            index = (begins + turn) % len(variants)
            before = time.perf_counter()
            variants[index].logits(batch)  # ends with a copy to the CPU, so it waits for the device
            seconds[index] = time.perf_counter() - before
        begins += 1
        for index, own in enumerate(seconds):
            ratios[index].append(own / seconds[0])
    return dict(zip(settings, map(median, ratios), strict=True))


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--merge", default=MERGE, help="settings with spaces between them; the first is the baseline")
    parser.add_argument("--models", default="vit_tiny_patch16_224,vit_base_patch16_224")
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each model and batch size")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--compute", default="fp32")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    settings: list[str] = options.merge.split()
    rows: list[dict[str, Any]] = [
        {"merge": text, **{key: scored[key] for key in ("merged_tokens", "top1", "drop_points", "agreement", "images")}}
        for text, scored in accuracy(settings, options).items()
    ]
    for model in options.models.split(","):
        for batch_size in map(int, options.batch_sizes.split(",")):
            ratios = time_ratios(model, batch_size, settings, options)
            for row in rows:
                row[f"time_ratio_{model}_batch{batch_size}"] = round(ratios[row["merge"]], 4)
    path = result_path(options.out, f"token-merging_{options.compute}")
    write_rows(path, rows)
    print(path)


if __name__ == "__main__":
    main()
