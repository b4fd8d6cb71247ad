"""From what each setting answered to rows with intervals: against the parent, and against quantizing everything.

    rows = compared(settings, outcomes, parent_predictions, targets)

`kept` is `none`, `first_last` or `blocks.N`; where they were asked for also a layer's name, kept alone, and
`all_but:blocks.N`, the only block that is quantized. `top1_delta` is in percentage points against the parent, negative
when worse; `kl_divergence` is the mean over the images of KL(parent ‖ setting) of the class probabilities, in nats.

A `gain` holds a setting against the one that it departs from: what is kept against `none`, a block quantized alone
against `all`; positive is better. p values come as they are and corrected by Holm's method within a kind of setting.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petalite.ablation.settings import ALL, NONE, Setting
from petalite.files import atomic
from petalite.measure.paired import holm, mean_intervals, sign_flip_p
from petalite.measure.statistics import mcnemar_p, paired_difference, wilson

COLUMNS = (
    *("format", "kept", "top1", "top1_delta", "delta_ci95_low", "delta_ci95_high", "agreement", "kl_divergence"),
    "images",
)
#: A difference is called real when its corrected p is below this.
LEVEL = 0.05


@dataclass
class Outcomes:
    """What the settings answered for the first `done` images; `seconds` of forward passes, `block_passes` an image."""

    predictions: NDArray[np.int32]  # settings, images
    divergences: NDArray[np.float64]  # settings, images: KL(parent ‖ setting) in nats
    done: int = 0
    seconds: float = 0.0
    block_passes: float = 0.0


def compared(
    settings: Sequence[Setting], outcomes: Outcomes, parent: NDArray[np.int32], targets: NDArray[np.int32]
) -> list[dict[str, Any]]:
    """A row for each setting, as JSON values; parent and targets (images,): the parent's answers and the right ones."""
    right = outcomes.predictions == targets
    intervals = mean_intervals(outcomes.divergences)
    rows = []
    for place, setting in enumerate(settings):
        delta, low, high = _points(parent == targets, right[place])
        rows.append(
            {
                "kept": setting.kept,
                "kind": setting.kind,
                "top1": float(right[place].mean()),
                "top1_ci95": list(wilson(int(right[place].sum()), len(targets))),
                "top1_delta": delta,
                "delta_ci95": [low, high],
                "mcnemar_p": _mcnemar(parent == targets, right[place]),
                "agreement": float((outcomes.predictions[place] == parent).mean()),
                "kl_divergence": float(outcomes.divergences[place].mean()),
                "kl_ci95": list(intervals[place]),
                "images": len(targets),
                "gain": None,
            }
        )
    for kind in dict.fromkeys(setting.kind for setting in settings):
        members = [place for place, setting in enumerate(settings) if setting.kind == kind and kind not in (NONE, ALL)]
        against = ALL if kind == "all_but" else NONE
        base = next(place for place, setting in enumerate(settings) if setting.kept == against)
        for place, gain in zip(members, _gains(right, outcomes.divergences, members, base), strict=True):
            rows[place]["gain"] = {"against": against, **gain}
    return rows


def write_csv(path: Path, formats: Sequence[Mapping[str, Any]]) -> None:
    """ablation_results.csv of the contract."""
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for found in formats:
            for row in found["rows"]:
                low, high = row["delta_ci95"]
                writer.writerow({"format": found["format"], **row, "delta_ci95_low": low, "delta_ci95_high": high})


def real(gain: Mapping[str, Any], measure: str) -> bool:
    """Whether a gain of `top1` or `kl` is more than chance, its kind's other comparisons considered."""
    return bool(gain[f"{measure}_p_holm"] < LEVEL)


def best_block(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The single kept block that gains the most top-1; of equals, the one that removes the most KL."""
    kept = (row for row in rows if row["kind"] == "block")
    return max(kept, key=lambda row: (row["gain"]["top1"], row["gain"]["kl"]))


def _gains(
    right: NDArray[np.bool_], divergences: NDArray[np.float64], members: Sequence[int], base: int
) -> list[dict[str, Any]]:
    """What each of `members` gains over `base`, with p values corrected for their number."""
    if not members:
        return []
    removed = divergences[base] - divergences[list(members)]
    intervals, flips = mean_intervals(removed), sign_flip_p(removed)
    exact = [_mcnemar(right[base], right[place]) for place in members]
    gains = []
    for index, (place, top1_p, kl_p) in enumerate(zip(members, holm(exact), holm(flips), strict=True)):
        points, low, high = _points(right[base], right[place])
        gains.append(
            {
                "top1": points,
                "top1_ci95": [low, high],
                "top1_p": exact[index],
                "top1_p_holm": top1_p,
                "kl": float(removed[index].mean()),
                "kl_ci95": list(intervals[index]),
                "kl_p": flips[index],
                "kl_p_holm": kl_p,
            }
        )
    return gains


def _points(was_right: NDArray[np.bool_], is_right: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Points of top-1 gained by going from one to the other, with the interval; negative is worse."""
    lost, gained = _changed(was_right, is_right)
    _, low, high = paired_difference(lost, gained, len(was_right))
    return 100 * (gained - lost) / len(was_right), -100 * high, -100 * low


def _mcnemar(was_right: NDArray[np.bool_], is_right: NDArray[np.bool_]) -> float:
    return mcnemar_p(*_changed(was_right, is_right))


def _changed(was_right: NDArray[np.bool_], is_right: NDArray[np.bool_]) -> tuple[int, int]:
    return int((was_right & ~is_right).sum()), int((is_right & ~was_right).sum())
