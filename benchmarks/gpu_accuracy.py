"""Top-1 through the engine on labelled photos, in each precision in flight, from each checkpoint, with tokens merged.

    python benchmarks/gpu_accuracy.py runs/flowers/checkpoints/fp32 --data flowers102 \
        --also int4=runs/int4,nf4=runs/nf4,int8-channel=runs/int8 --merge "8 12 14 16"

Each row is held against the FP32 module on the same photos: points of top-1 lost with their paired 95 % interval,
agreement, and the relative error of the logits. Tokens are merged in the last checkpoint of `--also`. The parent stored
in FP32 is run in every one of `--computes`; a checkpoint of fewer bits in FP8 and INT8.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from result_files import result_path
from torch import Tensor

from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.data import ImageData, Preprocess, load_batches, open_data
from petalite.engine import Classifier, load
from petalite.measure.accuracy import score
from petalite.merging import parse_merge

_BATCH = 100  # in no bucket of the engine: padding is part of what is tested
COLUMNS = ("checkpoint", "stored", "compute", "engine", "attention", "scales", "merge", "merged_tokens", "splits", "photos", "top1",
           "drop_points", "drop_ci95_low", "drop_ci95_high", "agreement", "logit_error")  # fmt: skip


def settings(arguments: argparse.Namespace) -> list[tuple[str, Checkpoint, str]]:
    """Name, checkpoint and compute of every row but the reference."""
    parent = read_checkpoint(arguments.checkpoint)
    found = [("fp32", parent, compute) for compute in arguments.computes.split(",")]
    name, checkpoint = "fp32", parent
    for text in filter(None, arguments.also.split(",")):
        name, _, path = text.partition("=")
        checkpoint = read_checkpoint(path)
        found += [(name, checkpoint, compute) for compute in ("fp8", "int8")]
    depth = parent.outline.depth
    for text in arguments.merge.split():
        merged = replace(checkpoint, plan=replace(checkpoint.plan, merge=parse_merge(text, depth)))
        found.append((name, merged, "fp8"))
    return found


def photos(images: ImageData, splits: tuple[str, ...], preprocess: Preprocess) -> tuple[list[Tensor], Tensor]:
    """Pixels, batch by batch, and targets of all photos of some splits."""
    samples = [sample for split in splits for sample in images.splits[split]]
    read = list(load_batches([sample.path for sample in samples], preprocess, _BATCH))
    if errors := [message for batch in read for _, message in batch.errors]:
        raise SystemExit(errors[0])
    return [batch.pixels for batch in read], torch.tensor([sample.target for sample in samples])


def rows_of(
    name: str, classifier: Classifier, checkpoint: Checkpoint, logits: Tensor, base: Tensor, targets: Tensor, test: int
) -> list[dict[str, Any]]:
    """A row for the test photos (the first `test` ones) and one for all."""
    info, rows = classifier.info, []
    for splits, end in (("test", test), ("test+valid", len(targets))):
        scored = score(logits[:end], targets[:end], base[:end])
        low, high = scored["drop_ci95"]
        error = float((logits[:end] - base[:end]).norm() / base[:end].norm())
        merge = ",".join(map(str, checkpoint.plan.merge))
        values = (
            name, checkpoint.plan.format, info.compute, info.engine, info.attention, info.scales, merge, info.merged_tokens,
            splits, end, round(scored["top1"], 5), round(scored["drop_points"], 3), round(low, 3), round(high, 3),
            round(scored["agreement"], 5), round(error, 5),
        )  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))
        print(*values, sep="\t", flush=True)
    return rows


def main() -> None:
    """Evaluate every setting and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--also", default="", help="NAME=FOLDER of packed checkpoints, with commas between them")
    parser.add_argument("--merge", default="", help="settings of token merging, with spaces between them")
    parser.add_argument("--computes", default="fp32,bf16,fp16,fp8,int8", help="for the parent")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    images, splits = open_data(arguments.data), ("test", "valid")
    reference = load(arguments.checkpoint, arguments.device, compute="fp32", engine="module")
    pixels, targets = photos(images, splits, reference.preprocess)
    base = torch.cat(list(reference.stream(pixels)))
    test = len(images.splits["test"])
    path = result_path(arguments.out, "gpu-accuracy")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows_of("fp32", reference, read_checkpoint(arguments.checkpoint), base, base, targets, test))
        for name, checkpoint, compute in settings(arguments):
            classifier = load(checkpoint, arguments.device, compute=compute, engine="fused")
            if classifier.preprocess != reference.preprocess:
                raise SystemExit(f"{name} sees other pixels than {arguments.checkpoint}")
            logits = torch.cat(list(classifier.stream(pixels)))
            writer.writerows(rows_of(name, classifier, checkpoint, logits, base, targets, test))
            file.flush()  # what was measured is kept, whatever happens
    print(path)


if __name__ == "__main__":
    main()
