"""What a data set is once it has been found, and how splits that it lacks are made: stratified, from a seed.

    train, valid, note = carve_valid(samples, folders, seed=0)

A split depends on the seed and on the names of the files alone, so that it is the same on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from petalite.errors import PetaliteError, did_you_mean


@dataclass(frozen=True)
class Sample:
    """An image file and the index of its class."""

    path: Path
    target: int


class Stored(Protocol):
    """An image that is not a file of its own, such as a member of a tar; `str()` of it is its name to show."""

    def read(self) -> bytes:
        """The encoded image. Raises ImageError when it cannot be had."""


@dataclass(frozen=True)
class ImageData:
    """Images in the splits "train", "valid" and "test", with their classes."""

    name: str
    root: Path
    folders: tuple[str, ...]  # class folders, in index order: sorted, as torchvision's ImageFolder has them
    classes: tuple[str, ...]  # the names to show, same order, no two alike
    splits: dict[str, tuple[Sample, ...]]
    notes: tuple[str, ...] = ()  # what was decided on the way, for people

    def split(self, name: str) -> tuple[Sample, ...]:
        """The images of one split. Raises PetaliteError for a split of no such name."""
        if name not in self.splits:
            hint = did_you_mean(name, self.splits)
            raise PetaliteError(f"unknown split '{name}'{hint}; {self.name} has {', '.join(self.splits)}")
        return self.splits[name]

    def without(self, paths: Iterable[Path]) -> ImageData:
        """The same data less the given files, such as those that cannot be read."""
        dropped = set(paths)
        kept = {split: tuple(s for s in samples if s.path not in dropped) for split, samples in self.splits.items()}
        return replace(self, splits=kept)


def split_all(
    samples: Sequence[Sample], folders: Sequence[str], seed: int
) -> tuple[dict[str, tuple[Sample, ...]], str]:
    """Samples in one heap -> train, valid and test of 80, 10 and 10 % of each class, and the note on it.

    valid and test get at least one image of each class. Raises PetaliteError naming classes of fewer than 3 images.
    """
    splits: dict[str, list[Sample]] = {"train": [], "valid": [], "test": []}
    for shuffled in _shuffled_classes(samples, folders, seed, least=3):
        tenth = max(1, round(len(shuffled) / 10))
        splits["test"] += shuffled[:tenth]
        splits["valid"] += shuffled[tenth : 2 * tenth]
        splits["train"] += shuffled[2 * tenth :]
    note = f"split 80/10/10 into train, valid and test: stratified by class, seed {seed}"
    return {split: _in_order(chosen) for split, chosen in splits.items()}, note


def carve_valid(
    samples: Sequence[Sample], folders: Sequence[str], seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...], str]:
    """Training samples -> (train, valid, note), with 10 % of each class, at least one image, for validation.

    Raises PetaliteError naming classes of fewer than 2 images.
    """
    train: list[Sample] = []
    valid: list[Sample] = []
    for shuffled in _shuffled_classes(samples, folders, seed, least=2):
        tenth = max(1, round(len(shuffled) / 10))
        valid += shuffled[:tenth]
        train += shuffled[tenth:]
    note = f"10 % of train is used as valid: stratified by class, seed {seed}"
    return _in_order(train), _in_order(valid), note


def listed(names: Sequence[str], shown: int = 5) -> str:
    """`a, b, c`, or `a, b, c, d, e and 4 more`: names in a message of one line."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _shuffled_classes(
    samples: Sequence[Sample], folders: Sequence[str], seed: int, least: int
) -> Iterable[list[Sample]]:
    """The samples of each class, shuffled by the seed and the folder's name: one class does not move another."""
    by_class: list[list[Sample]] = [[] for _ in folders]
    for sample in samples:
        by_class[sample.target].append(sample)
    few = [folder for folder, own in zip(folders, by_class, strict=True) if len(own) < least]
    if few:
        raise PetaliteError(f"too few images to split in {listed(few)}; each class needs {least} or more")
    for folder, own in zip(folders, by_class, strict=True):
        random.Random(f"{seed}/{folder}").shuffle(own)
    return by_class


def _in_order(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: (sample.target, sample.path)))
