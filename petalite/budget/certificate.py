"""What a test set proves about a drop: a one-sided bound on the same images, and whether it keeps the budget.

    certify(baseline_logits, logits, targets, max_drop=0.5)
    # Certificate(certified=False, drop_points=0.12, bound_points=0.71, …, reason="12 images changed …")

The test split is looked at once, after everything has been chosen; a bound from images that also chose the plan would
be too low.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from petalite.measure.statistics import paired_bound

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Certificate:
    """`certified`: with `confidence`, the drop is at most `max_drop` points. `bound_points` is what can be said."""

    certified: bool
    max_drop: float
    drop_points: float
    bound_points: float
    confidence: float
    lost: int
    gained: int
    images: int
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def certify(
    baseline_logits: Tensor, logits: Tensor, targets: Tensor, max_drop: float, confidence: float = CONFIDENCE
) -> Certificate:
    """Compare two classifiers on the same images.

    baseline_logits, logits: (images, classes); targets: (images,). max_drop: points of top-1 that may be lost.
    """
    was_right, is_right = baseline_logits.argmax(1) == targets, logits.argmax(1) == targets
    lost, gained = int((was_right & ~is_right).sum()), int((is_right & ~was_right).sum())
    return certificate(lost, gained, len(targets), max_drop, confidence)


def certificate(lost: int, gained: int, images: int, max_drop: float, confidence: float = CONFIDENCE) -> Certificate:
    """The certificate for these counts: images lost and gained of all that were compared."""
    drop = 100 * (lost - gained) / images
    bound = 100 * paired_bound(lost, gained, images, confidence)
    certified = bound <= max_drop
    counted = f"{lost} images lost and {gained} gained of {images}"
    said = f"{counted}: the drop is at most {bound:.2f} points with {100 * confidence:g} % confidence"
    if certified:
        reason = f"{said}, within the budget of {max_drop:g}"
    elif drop > max_drop:
        reason = f"{said}; the drop itself, {drop:.2f}, is over the budget of {max_drop:g}"
    else:
        reason = f"{said}, over the budget of {max_drop:g}{_images_needed(lost, gained, images, max_drop, confidence)}"
    return Certificate(certified, max_drop, drop, bound, confidence, lost, gained, images, reason)


def fewest_images(max_drop: float, confidence: float) -> int | None:
    """How many images it takes to certify a plan that loses and gains none of them; None where no number does."""
    if max_drop <= 0:
        return None
    enough = 1
    while 100 * paired_bound(0, 0, enough, confidence) > max_drop:
        enough *= 2
    short = enough // 2
    while enough - short > 1:
        middle = (short + enough) // 2
        if 100 * paired_bound(0, 0, middle, confidence) > max_drop:
            short = middle
        else:
            enough = middle
    return enough


def _images_needed(lost: int, gained: int, images: int, max_drop: float, confidence: float) -> str:
    """How many images would certify this rate of lost and gained ones."""
    for factor in (2, 3, 5, 10, 20, 50, 100):
        if 100 * paired_bound(lost * factor, gained * factor, images * factor, confidence) <= max_drop:
            return f"; at this rate about {images * factor:,} test images would certify it"
    return "; no number of images would certify this rate"
