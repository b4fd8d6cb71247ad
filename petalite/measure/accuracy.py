"""How right a variant is, and how far it moved from the baseline on the same images.

score(logits, targets, baseline_logits)
# {"images": 819, "top1": 0.976, "top1_ci95": [0.963, 0.984], …, "drop_points": 0.6, "drop_ci95": [-0.1, 1.4]}
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from petalite.errors import PetaliteError
from petalite.measure.statistics import mcnemar_p, paired_difference, wilson


def score(logits: Tensor, targets: Tensor, baseline_logits: Tensor | None = None) -> dict[str, Any]:
    """The contract's `accuracy` block, as JSON values, plus `images`.

    logits: (N, C) floating point. targets: (N,) class indices. baseline_logits: (N, C), the same images through the
    baseline; without it `agreement`, `drop_points`, `drop_ci95` and `mcnemar_p` are None.
    Rates are fractions of 1. `drop_points` and `drop_ci95` are percentage points of top-1, positive when worse than
    the baseline. `top5` counts the five best classes, or all of them where there are fewer. Macro F1 averages over
    the classes that occur as target or prediction.
    Raises PetaliteError for NaN or infinite logits, and for shapes that do not fit.
    """
    _check(logits, targets, "the variant")
    images, classes = logits.shape
    predictions = logits.argmax(dim=1)
    right = predictions == targets
    best = logits.topk(min(5, classes), dim=1).indices
    correct = int(right.sum())
    result: dict[str, Any] = {
        "images": images,
        "top1": correct / images,
        "top1_ci95": list(wilson(correct, images)),
        "top5": int((best == targets[:, None]).any(dim=1).sum()) / images,
        **_f1(predictions, targets),
        **dict.fromkeys(("agreement", "drop_points", "drop_ci95", "mcnemar_p")),
    }
    if baseline_logits is not None:
        if baseline_logits.shape != logits.shape:
            raise PetaliteError(
                f"baseline logits {tuple(baseline_logits.shape)} and logits {tuple(logits.shape)} are not of the same images"
            )
        _check(baseline_logits, targets, "the baseline")
        result |= _against(baseline_logits.argmax(dim=1), predictions, targets)
    return result


def _against(baseline: Tensor, predictions: Tensor, targets: Tensor) -> dict[str, Any]:
    """How predictions (N,) differ from the baseline's (N,)."""
    was_right, is_right = baseline == targets, predictions == targets
    lost, gained = int((was_right & ~is_right).sum()), int((is_right & ~was_right).sum())
    difference, low, high = paired_difference(lost, gained, len(targets))
    return {
        "agreement": int((baseline == predictions).sum()) / len(targets),
        "drop_points": 100 * difference,
        "drop_ci95": [100 * low, 100 * high],
        "mcnemar_p": mcnemar_p(lost, gained),
    }


def _f1(predictions: Tensor, targets: Tensor) -> dict[str, float]:
    from sklearn.metrics import f1_score

    true, predicted = targets.numpy(), predictions.numpy()
    return {
        f"f1_{average}": float(f1_score(true, predicted, average=average, zero_division=0.0))
        for average in ("weighted", "macro")
    }


def _check(logits: Tensor, targets: Tensor, whose: str) -> None:
    if logits.ndim != 2 or 0 in logits.shape:
        raise PetaliteError(f"logits of {whose} must be (images, classes), not empty, got {tuple(logits.shape)}")
    if targets.shape != logits.shape[:1]:
        raise PetaliteError(f"{len(logits)} rows of logits but targets of shape {tuple(targets.shape)}")
    if int(targets.min()) < 0 or int(targets.max()) >= logits.shape[1]:
        raise PetaliteError(
            f"targets go from {int(targets.min())} to {int(targets.max())}, logits have {logits.shape[1]} classes"
        )
    broken = ~torch.isfinite(logits).all(dim=1)
    if broken.any():
        first = int(broken.nonzero()[0])
        raise PetaliteError(
            f"logits of {whose} are NaN or infinite for {int(broken.sum())} of {len(logits)} images (first: image {first}); "
            "the numbers overflowed: use bf16 or fp32 compute, or check the weights"
        )
