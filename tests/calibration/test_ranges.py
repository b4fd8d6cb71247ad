"""The range of a layer's inputs: all of it where that is best, less where a few outliers would spoil the rest."""

from __future__ import annotations

import torch

from petalite.calibration.ranges import InputRange


def best(values: torch.Tensor) -> tuple[float, float]:
    span = InputRange()
    for part in values.split(1000):
        span.add(part)
    return span.best()


def test_even_values_are_covered() -> None:
    low, high = best(torch.linspace(-1, 3, 5000))
    assert low <= -0.97 and high >= 2.9


def test_zero_is_always_inside() -> None:
    low, high = best(torch.full((100,), 4.0))
    assert low <= 0 <= 4.0 <= high + 1e-6
    assert best(torch.zeros(50)) == (0.0, 0.0)


def test_a_lone_outlier_is_cut_off_when_that_loses_less() -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    values[7] = 60.0
    low, high = best(values)
    assert high < 59.0 and low < -3


def test_rounding_to_the_range_loses_less_than_to_the_extremes() -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1)) ** 3

    def loss(low: float, high: float) -> float:
        step = (high - low) / 255
        return float((values - (((values - low) / step).round().clamp(0, 255) * step + low)).square().sum())

    assert loss(*best(values)) <= loss(float(values.min()), float(values.max()))
