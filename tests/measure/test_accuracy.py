"""Scores are right on cases small enough to count by hand, and broken logits are never scored."""

from __future__ import annotations

import json
import math

import pytest
import torch

from petalite.errors import PetaliteError
from petalite.measure.accuracy import score
from petalite.measure.statistics import mcnemar_p, paired_difference, wilson


def logits_for(predictions: list[int], classes: int) -> torch.Tensor:
    return 5.0 * torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()


TARGETS = torch.tensor([0, 0, 1, 1, 2, 2])
RIGHT = [0, 0, 1, 1, 2, 2]
WORSE = [0, 1, 1, 1, 0, 2]  # loses images 1 and 4


def test_the_keys_are_the_contracts() -> None:
    found = score(logits_for(WORSE, 3), TARGETS, logits_for(RIGHT, 3))
    assert set(found) == {
        *("images", "top1", "top1_ci95", "top5", "f1_weighted", "f1_macro"),
        *("agreement", "drop_points", "drop_ci95", "mcnemar_p"),
    }
    json.dumps(found, allow_nan=False)


def test_a_hand_counted_case() -> None:
    found = score(logits_for(WORSE, 3), TARGETS, logits_for(RIGHT, 3))
    assert found["images"] == 6
    assert found["top1"] == pytest.approx(4 / 6)
    assert found["top1_ci95"] == list(wilson(4, 6))
    f1 = [2 * 1 / (2 + 2), 2 * 2 / (3 + 2), 2 * 1 / (1 + 2)]  # 2 TP / (predicted + true), class by class
    assert found["f1_macro"] == found["f1_weighted"] == pytest.approx(sum(f1) / 3)
    assert found["agreement"] == pytest.approx(4 / 6)
    difference, low, high = paired_difference(2, 0, 6)
    assert found["drop_points"] == pytest.approx(100 * difference) == pytest.approx(100 / 3)
    assert found["drop_ci95"] == pytest.approx([100 * low, 100 * high])
    assert found["mcnemar_p"] == mcnemar_p(2, 0)


def test_better_than_the_baseline_is_a_negative_drop() -> None:
    found = score(logits_for(RIGHT, 3), TARGETS, logits_for(WORSE, 3))
    assert found["drop_points"] == pytest.approx(-100 / 3)
    assert found["drop_ci95"][0] < found["drop_points"] < found["drop_ci95"][1]


def test_images_that_swap_their_errors_disagree_without_a_drop() -> None:
    found = score(logits_for([1, 0, 1, 1, 2, 2], 3), TARGETS, logits_for([0, 1, 1, 1, 2, 2], 3))
    assert found["drop_points"] == 0
    assert found["agreement"] == pytest.approx(4 / 6)
    assert found["mcnemar_p"] == 1.0


def test_two_wrong_answers_that_differ_do_not_agree() -> None:
    found = score(logits_for([1], 3), torch.tensor([0]), logits_for([2], 3))
    assert found["agreement"] == 0 and found["drop_points"] == 0


def test_weighted_f1_weighs_by_how_often_a_class_occurs() -> None:
    found = score(logits_for([0, 0, 0, 0], 2), torch.tensor([0, 0, 0, 1]))
    assert found["f1_weighted"] == pytest.approx(0.75 * 6 / 7)
    assert found["f1_macro"] == pytest.approx(0.5 * 6 / 7)


def test_top5_counts_the_fifth_but_not_the_sixth() -> None:
    row = torch.arange(10, 0, -1).float()[None]  # class 0 is the likeliest, class 9 the least
    assert score(row, torch.tensor([4]))["top5"] == 1
    assert score(row, torch.tensor([5]))["top5"] == 0


def test_with_fewer_than_five_classes_all_of_them_count() -> None:
    found = score(logits_for([1, 1], 3), torch.tensor([0, 2]))
    assert found["top1"] == 0 and found["top5"] == 1


def test_without_a_baseline_nothing_is_compared() -> None:
    found = score(logits_for(RIGHT, 3), TARGETS)
    assert [found[key] for key in ("agreement", "drop_points", "drop_ci95", "mcnemar_p")] == [None] * 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_logits_are_refused_by_name(value: float) -> None:
    broken = logits_for(RIGHT, 3)
    broken[4, 1] = value
    with pytest.raises(PetaliteError, match=r"variant are NaN or infinite for 1 of 6 images \(first: image 4\)"):
        score(broken, TARGETS)
    with pytest.raises(PetaliteError, match="baseline are NaN"):
        score(logits_for(RIGHT, 3), TARGETS, broken)


@pytest.mark.parametrize(
    ("logits", "targets", "baseline", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), None, "not empty"),
        (torch.zeros(4), torch.zeros(4, dtype=torch.long), None, r"\(images, classes\)"),
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.long), None, "4 rows"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), None, "0 to 3, logits have 3"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), None, "-1 to 0"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2, 4), "not of the same images"),
    ],
)
def test_shapes_that_do_not_fit(
    logits: torch.Tensor, targets: torch.Tensor, baseline: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(PetaliteError, match=message):
        score(logits, targets, baseline)
