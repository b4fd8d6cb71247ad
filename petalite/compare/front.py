"""The Pareto front over accuracy, latency and size at once, and for each variant that is not on it, who beats it.

    front = pareto_front(entries)
    for beaten in dominated(entries): beaten.by, beaten.certain

One beats another that is nowhere worse and somewhere better (V. Pareto, 1906). *Certain* is said where at least one
advantage is larger than the intervals of the two numbers and none of what is "nowhere worse" could turn round within
them; size is known exactly. Only entries of the same images and machine are held against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from petalite.compare.entries import MEASURES, Entry

#: +1 where more is better.
_SIGN = {"top1": 1, "p50_ms": -1, "disk_bytes": -1}
WORDS = {"top1": "more accurate", "p50_ms": "faster", "disk_bytes": "smaller"}


@dataclass(frozen=True)
class Beaten:
    """An entry off the front. by: who beats it, the most certain first. better: in what, by more than the intervals."""

    entry: Entry
    by: Entry
    better: tuple[str, ...]
    within_noise: tuple[str, ...]

    @property
    def certain(self) -> bool:
        """The intervals leave no other reading."""
        return bool(self.better) and not self.within_noise


def pareto_front(entries: Sequence[Entry]) -> list[Entry]:
    """Those that none of their group beats, in the order given; entries with a measure missing are left out."""
    whole = [entry for entry in entries if entry.complete]
    return [entry for entry in whole if not any(beats(other, entry) for other in whole)]


def dominated(entries: Sequence[Entry]) -> list[Beaten]:
    """One for each complete entry that is not on the front, beaten by the one that does so most clearly."""
    whole = [entry for entry in entries if entry.complete]
    found = []
    for entry in whole:
        by = [_beaten(entry, other) for other in whole if beats(other, entry)]
        if by:
            found.append(max(by, key=lambda one: (one.certain, len(one.better), -len(one.within_noise))))
    return found


def beats(one: Entry, other: Entry) -> bool:
    """Whether `one` is nowhere worse than `other` and somewhere better, by the numbers themselves."""
    if one.group != other.group:
        return False
    gains = [_gain(one, other, name) for name in MEASURES]
    return min(gains) >= 0 and max(gains) > 0


def _gain(one: Entry, other: Entry, name: str) -> float:
    return _SIGN[name] * (one.measures[name].value - other.measures[name].value)


def _beaten(entry: Entry, by: Entry) -> Beaten:
    better, noise = [], []
    for name in MEASURES:
        a, b = by.measures[name], entry.measures[name]
        apart = a.low > b.high if _SIGN[name] > 0 else a.high < b.low
        if apart:
            better.append(name)
        elif a != b:  # equal numbers with equal intervals are the same thing measured once
            noise.append(name)
    return Beaten(entry, by, tuple(better), tuple(noise))
