"""Scales from a search lose less than those that cover every value, by the measure that they were searched for."""

from __future__ import annotations

import pytest
import torch

from petalite.calibration.clip import fit_scales, group_sums
from petalite.formats import FORMATS
from petalite.formats.grid import UniformGrid

UNIFORM = [name for name, format in FORMATS.items() if isinstance(format.grid, UniformGrid)]


def heavy_tailed(rows: int = 32, columns: int = 160) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, columns, generator=generator)
        * torch.rand(rows, columns, generator=generator).reciprocal().sqrt()
    )


@pytest.mark.parametrize("name", UNIFORM)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_search_never_loses_more_than_round_to_nearest(name: str, weighted: bool) -> None:
    grid = FORMATS[name].grid
    assert isinstance(grid, UniformGrid)
    weight = heavy_tailed()
    importance = torch.rand(160, generator=torch.Generator().manual_seed(1)) ** 4 + 1e-3 if weighted else None

    def error(scales: object) -> float:
        lost = weight - grid.decode(grid.encode(weight, scales), scales)  # type: ignore[arg-type]
        return float(((importance if importance is not None else 1.0) * lost.square()).sum())

    searched, nearest = error(fit_scales(grid, weight, importance)), error(grid.stored(grid.fit(weight)))
    assert searched <= 1.001 * nearest
    if grid.bits <= 3:
        assert searched < 0.9 * nearest


@pytest.mark.parametrize("name", UNIFORM)
@pytest.mark.parametrize("value", [0.0, -2.5, 1e-7])
def test_a_constant_weight_stays_itself(name: str, value: float) -> None:
    grid = FORMATS[name].grid
    assert grid is not None
    weight = torch.full((5, 100), value)
    scales = fit_scales(grid, weight)
    torch.testing.assert_close(grid.decode(grid.encode(weight, scales), scales), weight, rtol=0.08, atol=1e-7)


def test_sums_of_groups_count_the_shorter_last_one() -> None:
    assert group_sums(torch.ones(2, 100), 64).tolist() == [[64.0, 36.0]] * 2
    assert group_sums(torch.ones(2, 100), None).tolist() == [[100.0]] * 2
