"""Accuracy of a checkpoint on labelled images, with intervals, against a baseline on the same images.

accuracy = evaluate("runs/flowers/checkpoints/nf4", "flowers102", baseline="runs/flowers/checkpoints/fp32")
accuracy["drop_points"], accuracy["drop_ci95"]
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petalite.console import track
from petalite.data import ImageData, Sample, load_batches, open_data
from petalite.engine import Classifier, load
from petalite.errors import Incomplete, PetaliteError
from petalite.measure.accuracy import score


def evaluate(
    checkpoint: str | Path,
    data: str | Path | ImageData,
    *,
    split: str = "test",
    baseline: str | Path | None = None,
    device: str = "auto",
    attention: str = "auto",
    compute: str = "auto",
    engine: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The contract's `accuracy` block for `checkpoint` on a split of `data`, with what ran in `info`.

    Rates are fractions of 1. `baseline` is evaluated in the same way; without one, agreement and drop are None.
    Raises PetaliteError when the classes do not fit, and Incomplete when images could not be read.
    """
    images = data if isinstance(data, ImageData) else open_data(data, seed)
    samples = images.split(split)
    targets = torch.tensor([sample.target for sample in samples])
    base_logits: Tensor | None = None
    if baseline is not None:
        base = load(baseline, device)
        check_classes(base, images)
        base_logits = logits_of(base, samples, batch_size, workers)
    classifier = load(checkpoint, device, attention, compute, engine=engine)
    check_classes(classifier, images)
    logits = logits_of(classifier, samples, batch_size, workers)
    return {**score(logits, targets, base_logits), "split": split, "info": classifier.info.as_dict()}


def sentence(accuracy: Mapping[str, Any]) -> str:
    """What `evaluate` returned, in words."""
    low, high = accuracy["top1_ci95"]
    text = (
        f"top-1 {100 * accuracy['top1']:.2f} % [{100 * low:.2f}, {100 * high:.2f}], top-5 {100 * accuracy['top5']:.2f} %, "
        f"weighted F1 {100 * accuracy['f1_weighted']:.2f} % on {accuracy['images']} images of {accuracy['split']}"
    )
    if accuracy["drop_points"] is not None:
        low, high = accuracy["drop_ci95"]
        text += (
            f"; drop {accuracy['drop_points']:+.2f} points [{low:+.2f}, {high:+.2f}], "
            f"agreement {100 * accuracy['agreement']:.2f} %, McNemar p = {accuracy['mcnemar_p']:.3g}"
        )
    return text


def logits_of(
    classifier: Classifier, samples: Sequence[Sample], batch_size: int = 32, workers: int | None = None
) -> Tensor:
    """Logits (images, classes) in float32 for every sample, in order. Raises Incomplete naming what cannot be read."""
    logits = torch.full((len(samples), len(classifier.classes)), math.nan)
    paths = [sample.path for sample in samples]
    failed: list[str] = []
    places: deque[Tensor] = deque()  # where the answers that are still to come belong

    def pixels() -> Iterator[Tensor]:
        batches = load_batches(paths, classifier.preprocess, batch_size, workers)
        count = math.ceil(len(paths) / max(batch_size, 1))
        for batch in track(batches, f"evaluate {classifier.info.format}", total=count):
            failed.extend(message for _, message in batch.errors)
            if len(batch.indices):
                places.append(batch.indices)
                yield batch.pixels

    for answers in classifier.stream(pixels()):
        logits[places.popleft()] = answers
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise Incomplete(f"{failed[0]}{more}; `petalite data check` lists unreadable images")
    return logits


def check_classes(classifier: Classifier, images: ImageData) -> None:
    """Raise PetaliteError when the checkpoint's classes are not the data's, in number or in order."""
    if len(classifier.classes) != len(images.classes):
        raise PetaliteError(
            f"{classifier.info.checkpoint} has {len(classifier.classes)} classes, {images.name} has {len(images.classes)}; "
            "train on this data first"
        )
    for index, (known, given) in enumerate(zip(classifier.classes, images.classes, strict=True)):
        if known != given and not known.startswith("class "):
            raise PetaliteError(
                f"class {index} is '{known}' in {classifier.info.checkpoint} and '{given}' in {images.name}; "
                "the class folders differ from those of the training"
            )
