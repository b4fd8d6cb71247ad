"""Intervals and tests for means over the same images: they hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wilcoxon

from petalite.errors import PetaliteError
from petalite.measure.paired import holm, mean_intervals, sign_flip_p


def skewed(rows: int, count: int, shift: float = 0.0) -> np.ndarray:
    """Differences whose mean is `shift` and whose few large ones carry most of it, as divergences are."""
    random = np.random.default_rng(1)
    return random.normal(size=(rows, count)) * random.exponential(size=(rows, count)) ** 2 + shift


def test_an_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    intervals = mean_intervals(skewed(300, 200, shift=0.5), resamples=800)
    held = sum(low <= 0.5 <= high for low, high in intervals) / 300
    assert 0.9 < held < 0.98


def test_no_difference_is_called_real_about_as_often_as_it_says() -> None:
    p_values = np.array(sign_flip_p(skewed(400, 60), resamples=400))
    assert 0.02 < (p_values < 0.05).mean() < 0.09
    assert 0.4 < (p_values < 0.5).mean() < 0.6


def test_a_real_difference_is_seen() -> None:
    differences = skewed(1, 1000, shift=1.0)
    assert sign_flip_p(differences)[0] == pytest.approx(1e-4)  # the least that so many resamples can say
    assert wilcoxon(differences[0]).pvalue < 1e-4


def test_a_difference_and_its_opposite_are_as_likely() -> None:
    differences = skewed(1, 40, shift=0.3)
    assert sign_flip_p(differences) == sign_flip_p(-differences)


def test_no_difference_at_all() -> None:
    assert sign_flip_p(np.zeros((2, 5))) == [1.0, 1.0]
    assert mean_intervals(np.zeros((2, 5))) == [(0.0, 0.0)] * 2


def test_the_same_numbers_give_the_same_answer_in_any_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    values = skewed(3, 50, shift=0.2)
    assert mean_intervals(values) == mean_intervals(values)
    wide = mean_intervals(values, resamples=4000)
    monkeypatch.setattr("petalite.measure.paired._CELLS", 1000)
    assert np.allclose(mean_intervals(values, resamples=4000), wide, atol=0.02)
    assert len(sign_flip_p(values, resamples=100)) == 3


def test_holm_by_hand() -> None:
    # Holm (1979): the smallest times 4, the next times 3, …, never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@pytest.mark.parametrize("values", [np.zeros((2, 0)), np.zeros(3), np.array([[1.0, np.nan]])])
def test_what_cannot_be_compared_is_refused(values: np.ndarray) -> None:
    with pytest.raises(PetaliteError, match="finite numbers"):
        mean_intervals(values)
