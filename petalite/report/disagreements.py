"""The confusion that quantization causes: photos on which the baseline and a small variant give different answers.

    found = disagreements(study)
    found.variant.name, len(found.photos), found.lost      # "nf4-fa2", 11, 5

Compared is a 4-bit variant, where bits are fewest; without one, the variant that agrees least with the baseline.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from petalite.report.inputs import Prediction, Study
from petalite.report.variants import Variant

FOUR_BITS = ("nf4", "int4", "fp4")


@dataclass(frozen=True)
class Disagreements:
    """Both answers for every photo on which they differ, those that were right before first."""

    baseline: Variant
    variant: Variant
    compared: int
    photos: tuple[tuple[Prediction, Prediction], ...]  # (the baseline's, the variant's)

    @property
    def lost(self) -> int:
        """The baseline was right, the variant is wrong."""
        return sum(before.right is True and after.right is False for before, after in self.photos)

    @property
    def won(self) -> int:
        """The baseline was wrong, the variant is right."""
        return sum(before.right is False and after.right is True for before, after in self.photos)

    @property
    def both_wrong(self) -> int:
        """Two different wrong answers."""
        return sum(before.right is False and after.right is False for before, after in self.photos)

    @property
    def often(self) -> list[tuple[str, str, int]]:
        """(the baseline's answer, the variant's, how often), for what happened more than once; most often first."""
        counts = Counter((before.best or "", after.best or "") for before, after in self.photos)
        repeated = [(old, new, count) for (old, new), count in counts.items() if count > 1]
        return sorted(repeated, key=lambda item: (-item[2], item[0], item[1]))


def disagreements(study: Study) -> Disagreements | None:
    """What the baseline and the chosen variant disagree on; None when there are not two sets of predictions."""
    base = study.baseline
    if base is None or base.name not in study.predictions:
        return None
    others = [variant for variant in study.ran if variant is not base and variant.name in study.predictions]
    pool = [variant for variant in others if variant.format.startswith(FOUR_BITS)] or others
    if not pool:
        return None
    variant = min(pool, key=lambda item: item.agreement if item.agreement is not None else 1.0)
    before = {row.path: row for row in study.predictions[base.name] if row.best is not None}
    after = [row for row in study.predictions[variant.name] if row.best is not None and row.path in before]
    pairs = [(before[row.path], row) for row in after]
    differ = [(old, new) for old, new in pairs if old.best != new.best]
    return Disagreements(base, variant, len(pairs), tuple(sorted(differ, key=_weight)))


def _weight(pair: tuple[Prediction, Prediction]) -> tuple[int, float, str]:
    """What was lost first, then what was won, then the rest; within these, the most confident new answer first."""
    old, new = pair
    rank = 0 if old.right and not new.right else 1 if new.right and not old.right else 2
    return rank, -(new.score or 0.0), new.path
