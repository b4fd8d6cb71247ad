"""What changed from one study to the next: each variant that both have, and whether chance alone explains it.

    for change in changes(before, after): change.name, change.points, change.interval

Top-1 is compared image by image where both studies predicted the same images: the interval is Tango's, as for a drop
within a study. Latencies are of two runs, between which more changes than within one, so their ratio has no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from petalite.compare.entries import Labelled, processors
from petalite.measure.statistics import mcnemar_p, paired_difference
from petalite.report.inputs import Prediction
from petalite.report.variants import Variant


@dataclass(frozen=True)
class Change:
    """A variant in two studies.

    points: of top-1 gained, in percentage points; interval and p of the pairs where both saw the same images. ratios
    are after / before. status: `ok`, or what became of the variant: `new`, `gone`, `broken`, `mended`, `failed`.
    """

    name: str
    status: str
    points: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    images: int | None = None
    latency_ratio: float | None = None
    size_ratio: float | None = None
    rate_ratio: float | None = None

    @property
    def within_noise(self) -> bool:
        """The interval of the change of top-1 holds 0."""
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]


def changes(before: Labelled, after: Labelled) -> list[Change]:
    """One for each variant of either study, those of `after` first. Latencies only where the processors are the same."""
    old = {variant.name: variant for variant in before.study.variants}
    new = {variant.name: variant for variant in after.study.variants}
    same_machine = processors(before.study) == processors(after.study)
    found = []
    for name in dict.fromkeys([*new, *old]):
        status = _status(old.get(name), new.get(name))
        if status == "ok":
            found.append(_change(name, before, after, old[name], new[name], same_machine))
        else:
            found.append(Change(name, status))
    return found


def _status(old: Variant | None, new: Variant | None) -> str:
    if old is None:
        return "new"
    if new is None:
        return "gone"
    if old.ok and new.ok:
        return "ok"
    return "broken" if old.ok else "mended" if new.ok else "failed"


def _change(name: str, before: Labelled, after: Labelled, old: Variant, new: Variant, same_machine: bool) -> Change:
    points = None if old.top1 is None or new.top1 is None else 100 * (new.top1 - old.top1)
    interval, p, images = None, None, None
    paired = _pairs(before.study.predictions.get(name, ()), after.study.predictions.get(name, ()))
    if paired is not None:
        lost, gained, images = paired
        difference, low, high = paired_difference(lost, gained, images)
        points, interval, p = -100 * difference, (-100 * high, -100 * low), mcnemar_p(lost, gained)
    return Change(
        name,
        "ok",
        points,
        interval,
        p,
        images,
        _ratio(new.p50_ms, old.p50_ms) if same_machine else None,
        _ratio(new.disk_bytes, old.disk_bytes),
        _ratio(new.images_per_s, old.images_per_s) if same_machine else None,
    )


def _pairs(old: Sequence[Prediction], new: Sequence[Prediction]) -> tuple[int, int, int] | None:
    """(lost, gained, images), or None where the two did not see the same labelled photos in the same order.

    A photo is known by its file's name and its class: the folder of the data may have moved.
    """
    if not old or [_photo(row) for row in old] != [_photo(row) for row in new]:
        return None
    pairs = [(one.right, other.right) for one, other in zip(old, new, strict=True)]
    known = [(was, now) for was, now in pairs if was is not None and now is not None]
    lost = sum(was and not now for was, now in known)
    gained = sum(now and not was for was, now in known)
    return (lost, gained, len(known)) if known else None


def _photo(row: Prediction) -> tuple[str, str | None]:
    return PurePath(row.path.replace("\\", "/")).name, row.target


def _ratio(new: float | None, old: float | None) -> float | None:
    return new / old if new is not None and old else None
