"""Error feedback: smaller error on the outputs than rounding to nearest, for inputs that are correlated."""

from __future__ import annotations

import pytest
import torch

from petalite.calibration.clip import fit_scales
from petalite.calibration.gptq import gptq
from petalite.errors import PetaliteError
from petalite.formats import FORMATS
from petalite.formats.grid import Grid, Scales, UniformGrid

ON_GRID = [name for name, format in FORMATS.items() if format.grid is not None]


def case(columns: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (24, columns) and second moments of inputs that vary together."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(2000, columns, generator=generator) @ (mixing + 0.3)
    return torch.randn(24, columns, generator=generator), inputs.T @ inputs


def output_error(grid: Grid, weight: torch.Tensor, moments: torch.Tensor, codes: torch.Tensor, scales: Scales) -> float:
    lost = (weight - grid.decode(codes, scales)).double()
    return float(((lost @ moments.double()) * lost).sum())


@pytest.mark.parametrize("name", ON_GRID)
def test_outputs_err_less_than_with_the_best_scales_alone(name: str) -> None:
    grid = FORMATS[name].grid
    assert grid is not None
    weight, moments = case()
    scales = fit_scales(grid, weight, moments.diagonal())
    plain = output_error(grid, weight, moments, grid.encode(weight, scales), scales)
    found = output_error(grid, weight, moments, *gptq(grid, weight, moments))
    assert found < (0.7 if isinstance(grid, UniformGrid) and grid.bits <= 4 else 1.0) * plain


@pytest.mark.parametrize("name", ["int3", "int4-g128-sym"])
def test_what_it_finds_survives_the_disk(name: str) -> None:
    grid = FORMATS[name].grid
    assert grid is not None
    weight, moments = case(columns=200)
    codes, scales = gptq(grid, weight, moments)
    torch.testing.assert_close(grid.unpack(grid.pack(codes, scales)), grid.decode(codes, scales), rtol=1e-4, atol=1e-5)


def test_inputs_that_never_vary_are_rounded_all_the_same() -> None:
    grid = UniformGrid(4, 64)
    weight, _ = case()
    codes, scales = gptq(grid, weight, torch.zeros(96, 96))
    assert ((grid.decode(codes, scales) - weight).norm() / weight.norm()).item() < 0.12
    one = torch.zeros(96, 96)
    one[5, 5] = 10.0  # a single input that is ever seen
    codes, scales = gptq(grid, weight, one)
    assert torch.isfinite(grid.decode(codes, scales)).all()


def test_inputs_that_are_not_finite_are_refused() -> None:
    weight, moments = case()
    moments[3, 3] = float("nan")
    with pytest.raises(PetaliteError, match="NaN or infinite"):
        gptq(UniformGrid(4, 64), weight, moments)
