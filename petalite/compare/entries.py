"""A study's variants as comparable entries: three measures with their intervals, and on what they were measured.

entries = entries_of(labelled([Path("runs/monday"), Path("runs/tuesday")]))
entries[0].measures["top1"].low, entries[0].group      # the interval's lower end; "A": same images, same machine
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from petalite.errors import PetaliteError
from petalite.measure.statistics import Z95
from petalite.report.inputs import Study, read_study
from petalite.report.method import machine
from petalite.report.variants import Variant, text

#: What a variant is judged by: top-1 (a fraction of 1, more is better), latency at batch 1 in ms, bytes on disk.
MEASURES = ("top1", "p50_ms", "disk_bytes")


@dataclass(frozen=True)
class Measure:
    """A number and the 95 % interval around it; the number itself where nothing is known of it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Labelled:
    """A study under the name by which a comparison calls it."""

    label: str
    study: Study


@dataclass(frozen=True)
class Entry:
    """One variant of one study.

    group: entries with the same letter saw the same images on the same machine; only those are held against each other.
    """

    label: str
    variant: Variant
    study: Study
    group: str
    measures: Mapping[str, Measure]

    @property
    def name(self) -> str:
        """`study/variant`."""
        return f"{self.label}/{self.variant.name}"

    @property
    def complete(self) -> bool:
        """It ran, and all three measures are known."""
        return self.variant.ok and len(self.measures) == len(MEASURES)


def labelled(folders: Sequence[Path]) -> list[Labelled]:
    """Read the studies; each is called by its folder, or by as much of its path as tells it from the others.

    Raises PetaliteError for fewer than two, for one named twice, and for folders without results.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise PetaliteError("a comparison needs at least two studies, from the oldest to the newest")
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        twice = next(path for place, path in enumerate(paths) if resolved[place] in resolved[:place])
        raise PetaliteError(f"{twice} is named twice")
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        labels = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(labels)) == len(labels):
            break
    return [Labelled(label, read_study(path)) for label, path in zip(labels, paths, strict=True)]


def entries_of(studies: Sequence[Labelled]) -> list[Entry]:
    """Every variant of every study, in order."""
    letters: dict[tuple[str, ...], str] = {}
    entries = []
    for one in studies:
        letter = letters.setdefault(measured_on(one.study), chr(ord("A") + len(letters)))
        entries += [
            Entry(one.label, variant, one.study, letter, _measures(one.study, variant))
            for variant in one.study.variants
        ]
    return entries


def measured_on(study: Study) -> tuple[str, ...]:
    """What has to be the same for two studies' numbers to be held against each other: images, and processors."""
    data = study.data
    which = text(data.get("fingerprint")) or f"{text(data.get('name'))} {study.images}"
    return (which, text(data.get("split")), *processors(study))


def processors(study: Study) -> tuple[str, ...]:
    """The GPU and the CPU; the operating system's version is of no matter."""
    platform = text(study.environment.get("platform"))
    return tuple(line for line in machine(study) if line != platform)


def _measures(study: Study, variant: Variant) -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    if variant.top1 is not None:
        found["top1"] = Measure(variant.top1, *(variant.top1_ci or (variant.top1, variant.top1)))
    if variant.p50_ms is not None:
        found["p50_ms"] = Measure(variant.p50_ms, *median_interval(study.samples_ms(variant), variant.p50_ms))
    if variant.disk_bytes is not None:
        found["disk_bytes"] = Measure(variant.disk_bytes, variant.disk_bytes, variant.disk_bytes)
    return found


def median_interval(samples: Sequence[float], median: float) -> tuple[float, float]:
    """The 95 % interval of a median by the ranks of its samples; without samples, the median itself.

    Source: Conover, Practical Nonparametric Statistics (1999), section 3.2. It knows nothing of what differs between
    two runs of a machine.
    """
    count = len(samples)
    if count < 6:
        return median, median
    ordered, half = sorted(samples), Z95 * math.sqrt(count) / 2
    low, high = max(math.floor(count / 2 - half), 0), min(math.ceil(count / 2 + half), count - 1)
    return min(ordered[low], median), max(ordered[high], median)
