"""The certificate: a bound that holds as often as it says, and a reason in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from petalite.budget.certificate import certificate, certify, fewest_images
from petalite.errors import PetaliteError
from petalite.measure.statistics import paired_bound, paired_difference


def test_the_bound_lies_between_the_drop_and_the_two_sided_interval_s_end() -> None:
    for lost, gained, n in [(0, 0, 819), (5, 3, 819), (40, 4, 1637), (3, 9, 100)]:
        drop, _, high = paired_difference(lost, gained, n)
        assert drop < paired_bound(lost, gained, n, 0.95) < high
        assert paired_bound(lost, gained, n, 0.975) == pytest.approx(high, abs=1e-9)
        assert paired_bound(lost, gained, n, 0.5) == pytest.approx(drop)


def test_the_bound_is_exceeded_as_rarely_as_it_says() -> None:
    """Draw many test sets from a known rate of lost and gained images: the truth is over the bound in at most 5 %."""
    random = np.random.default_rng(0)
    for lost_rate, gained_rate in [(0.004, 0.001), (0.02, 0.01), (0.001, 0.001)]:
        truth, over = lost_rate - gained_rate, 0
        for _ in range(400):
            lost, gained, _ = random.multinomial(819, [lost_rate, gained_rate, 1 - lost_rate - gained_rate])
            over += truth > paired_bound(int(lost), int(gained), 819, 0.95)
        assert over <= 0.05 * 400 + 2 * (0.05 * 0.95 * 400) ** 0.5


def test_a_bound_within_the_budget_certifies() -> None:
    proof = certificate(1, 1, 819, max_drop=0.5)
    assert proof.certified and proof.drop_points == 0.0 and proof.bound_points < 0.5
    assert "within the budget of 0.5" in proof.reason


def test_too_few_images_are_the_reason_and_how_many_would_do_is_said() -> None:
    proof = certificate(2, 1, 409, max_drop=0.5)
    assert not proof.certified and proof.drop_points < 0.5
    assert (
        "over the budget of 0.5; at this rate about" in proof.reason and "test images would certify it" in proof.reason
    )


def test_a_drop_over_the_budget_is_said_to_be_that() -> None:
    proof = certificate(30, 5, 819, max_drop=0.5)
    assert not proof.certified
    assert "the drop itself, 3.05, is over the budget" in proof.reason


def test_a_budget_of_nothing_is_not_certified_by_a_plan_that_changes_nothing() -> None:
    proof = certificate(0, 0, 819, max_drop=0.0)
    assert not proof.certified and proof.bound_points == pytest.approx(0.329, abs=0.01)
    assert "no number of images would certify" in proof.reason
    assert certificate(0, 40, 819, max_drop=0.0).certified  # one that gains does


@pytest.mark.parametrize(("max_drop", "confidence"), [(0.5, 0.95), (1.0, 0.8), (7.3, 0.8), (99.0, 0.95), (1.0, 0.5)])
def test_the_fewest_images_certify_and_one_less_do_not(max_drop: float, confidence: float) -> None:
    fewest = fewest_images(max_drop, confidence)
    assert fewest is not None and certificate(0, 0, fewest, max_drop, confidence).certified
    assert fewest == 1 or not certificate(0, 0, fewest - 1, max_drop, confidence).certified


def test_no_number_of_images_certifies_that_nothing_is_lost() -> None:
    assert fewest_images(0.0, 0.95) is None


def test_counts_come_from_the_same_images() -> None:
    targets = torch.tensor([0, 1, 2, 0])
    base = torch.eye(3)[[0, 1, 2, 1]]
    other = torch.eye(3)[[0, 1, 0, 0]]
    proof = certify(base, other, targets, max_drop=1.0)
    assert (proof.lost, proof.gained, proof.images) == (1, 1, 4)


@pytest.mark.parametrize("confidence", [0.3, 1.0, float("nan")])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(PetaliteError, match=r"confidence must be at least 0\.5 and below 1"):
        paired_bound(1, 1, 100, confidence)
