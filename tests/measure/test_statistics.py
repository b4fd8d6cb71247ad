"""Intervals cover what they promise to cover, and agree with published and brute-force values."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial

from petalite.errors import PetaliteError
from petalite.measure.statistics import Z95, mcnemar_p, paired_difference, percentiles, wilson


def test_wilson_agrees_with_the_literature() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(29, 29)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_rate(successes: int, n: int) -> None:
    with pytest.raises(PetaliteError, match="successes"):
        wilson(successes, n)


def score_statistic(lost: int, gained: int, n: int, delta: float) -> float:
    """Tango's statistic from its definition: the nuisance rate is found by maximizing the likelihood numerically."""
    same = n - lost - gained

    def unlikely(rate: float) -> float:  # rate: of gained images
        return -(
            (lost * math.log(rate + delta) if lost else 0.0)
            + (gained * math.log(rate) if gained else 0.0)
            + (same * math.log(1 - 2 * rate - delta) if same else 0.0)
        )

    low, high = max(0.0, -delta), (1 - delta) / 2
    margin = 1e-12 * (high - low)
    rate = minimize_scalar(unlikely, bounds=(low + margin, high - margin), method="bounded", options={"xatol": 1e-13}).x
    return (lost - gained - n * delta) / math.sqrt(n * (2 * rate + delta - delta**2))


@pytest.mark.parametrize(("lost", "gained", "n"), [(9, 3, 819), (3, 9, 819), (40, 12, 1637), (5, 1, 30), (7, 7, 50)])
def test_the_paired_interval_ends_where_the_score_test_rejects(lost: int, gained: int, n: int) -> None:
    difference, low, high = paired_difference(lost, gained, n)
    assert difference == pytest.approx((lost - gained) / n)
    assert score_statistic(lost, gained, n, low) == pytest.approx(Z95, abs=1e-3)
    assert score_statistic(lost, gained, n, high) == pytest.approx(-Z95, abs=1e-3)


def test_the_paired_interval_is_the_same_seen_from_the_other_side() -> None:
    difference, low, high = paired_difference(9, 3, 819)
    assert paired_difference(3, 9, 819) == pytest.approx((-difference, -high, -low))


def test_no_changed_image_still_leaves_room_for_a_difference() -> None:
    expected = Z95**2 / (819 + Z95**2)  # the score interval of a rate of 0 in n
    assert paired_difference(0, 0, 819) == pytest.approx((0.0, -expected, expected))


@pytest.mark.parametrize(("lost", "gained", "n", "edges"), [(5, 0, 5, (None, 1.0)), (0, 5, 5, (-1.0, None))])
def test_when_every_image_changes_the_interval_ends_at_one(
    lost: int, gained: int, n: int, edges: tuple[float | None, float | None]
) -> None:
    _, low, high = paired_difference(lost, gained, n)
    assert -1 <= low < high <= 1
    assert all(edge is None or edge == found for edge, found in zip(edges, (low, high), strict=True))


@cache
def interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    return paired_difference(lost, gained, n)[1:]


@pytest.mark.parametrize(
    ("p_lost", "p_gained", "n"),
    [(0.002, 0.001, 819), (0.005, 0.005, 819), (0.01, 0.004, 819), (0.02, 0.0, 200), (0.05, 0.02, 100), (0.3, 0.1, 40)],
)
def test_the_paired_interval_covers_the_truth_95_times_in_100(p_lost: float, p_gained: float, n: int) -> None:
    """Every outcome that can happen, weighted by how likely it is: no simulation, no luck."""
    truth, covered, seen = p_lost - p_gained, 0.0, 0.0
    outcomes = multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained])
    reach = lambda p: range(min(n, int(n * p + 7 * math.sqrt(n * p) + 4)) + 1)  # noqa: E731
    for lost in reach(p_lost):
        for gained in reach(p_gained):
            if lost + gained > n:
                continue
            weight = float(outcomes.pmf([lost, gained, n - lost - gained]))
            seen += weight
            if weight > 1e-7:
                low, high = interval(lost, gained, n)
                covered += weight * (low <= truth <= high)
    assert seen == pytest.approx(1, abs=1e-3)
    assert covered >= 0.93  # counts are whole, so 95 % cannot be met exactly


@pytest.mark.parametrize(("lost", "gained", "n"), [(1, 1, 0), (-1, 0, 5), (3, 3, 5)])
def test_a_paired_difference_refuses_impossible_counts(lost: int, gained: int, n: int) -> None:
    with pytest.raises(PetaliteError, match="paired difference"):
        paired_difference(lost, gained, n)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    tail = sum(math.comb(12, k) for k in range(4)) / 2**12
    assert mcnemar_p(9, 3) == mcnemar_p(3, 9) == pytest.approx(2 * tail)
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(20, 0) == pytest.approx(2 / 2**20)


def test_percentiles_are_numpys() -> None:
    samples = [float(value) for value in np.random.default_rng(0).lognormal(size=77)]
    found = percentiles(samples)
    assert found["mean"] == pytest.approx(np.mean(samples))
    assert [found["p50"], found["p95"], found["p99"]] == pytest.approx(np.percentile(samples, [50, 95, 99]))
    assert percentiles([2.0]) == {"mean": 2.0, "p50": 2.0, "p95": 2.0, "p99": 2.0}
    with pytest.raises(PetaliteError, match="at least one"):
        percentiles([])
