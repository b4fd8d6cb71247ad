"""An export held against Petalite on real images: the same photos through both, class by class.

expected, targets = reference(checkpoint, data, samples)
answers = answers_of(run, "pixels", preprocess, samples, classes=102)
agreement(answers, expected)          # 0.9988: of 819 photos, 818 get the same class
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from petalite.checkpoint import Checkpoint
from petalite.console import track
from petalite.data import ImageData, Preprocess, Sample, decode, load_batches
from petalite.engine import load
from petalite.errors import Incomplete, PetaliteError
from petalite.evaluation import check_classes, logits_of
from petalite.export.spans import expanded
from petalite.export.targets import Array, Run

BATCH = 16


def chosen_samples(data: ImageData, images: int | None) -> Sequence[Sample]:
    """All test images, or `images` of them at equal distances. Raises PetaliteError for fewer than one."""
    samples = data.splits["test"]
    if images is None:
        return samples
    if images < 1:
        raise PetaliteError(f"an export is checked on at least 1 image, got {images}")
    places = np.linspace(0, len(samples) - 1, min(images, len(samples))).round().astype(int)
    return [samples[place] for place in dict.fromkeys(places.tolist())]


def reference(checkpoint: Checkpoint, data: ImageData, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """What Petalite's plain modules answer in single precision on a CPU, (images, classes), and the right classes.

    Packed weights are expanded first, as exports hold them: bitsandbytes' layers round on a CPU even in single precision.
    Raises PetaliteError where the classes are not the data's, and Incomplete for images that cannot be read.
    """
    classifier = load(expanded(checkpoint), "cpu", compute="fp32", engine="module")
    check_classes(classifier, data)
    return logits_of(classifier, samples, BATCH), torch.tensor([sample.target for sample in samples])


def answers_of(run: Run, inputs: str, preprocess: Preprocess, samples: Sequence[Sample], classes: int) -> Tensor:
    """What an exported model answers, float32 (images, classes); inputs: one of INPUTS.

    Raises Incomplete for images that cannot be read and for answers of another shape.
    """
    batches = _images(samples) if inputs == "image" else _pixels(preprocess, samples, normalized=inputs == "none")
    total = len(samples) if inputs == "image" else -(-len(samples) // BATCH)
    answers = np.concatenate([run(batch) for batch in track(batches, "check", total=total)])
    if answers.shape != (len(samples), classes):
        raise Incomplete(f"the exported model answers {answers.shape} where {(len(samples), classes)} is expected")
    return torch.from_numpy(answers)


def agreement(answers: Tensor, expected: Tensor) -> float:
    """Of how many images the most likely class is the same, a fraction of 1."""
    return float((answers.argmax(dim=1) == expected.argmax(dim=1)).double().mean())


def largest_difference(answers: Tensor, expected: Tensor) -> float:
    """The largest difference of two logits."""
    return float((answers - expected).abs().max())


def _pixels(preprocess: Preprocess, samples: Sequence[Sample], normalized: bool) -> Iterator[Array]:
    for batch in load_batches([sample.path for sample in samples], preprocess, BATCH):
        if batch.errors:
            raise Incomplete(f"{batch.errors[0][1]}; `petalite data check` lists unreadable images")
        yield (preprocess.normalize(batch.pixels) if normalized else batch.pixels).numpy()


def _images(samples: Sequence[Sample]) -> Iterator[Array]:
    """Each image as decoders give it, uint8 (1, h, w, 3)."""
    for sample in samples:
        yield np.array(decode(sample.path))[None]
