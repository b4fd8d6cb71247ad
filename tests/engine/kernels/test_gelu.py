"""GELU within its bound on the whole line, in both forms, and written as codes like everything else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from petalite.engine.kernels.gelu import activation, gelu, gelu_exact, gelu_half, gelu_tanh
from petalite.engine.kernels.quantize import apply
from tests.engine.kernels.codes import FP8, INT8, assert_own_scales, assert_written, rows_of

FORMS = pytest.mark.parametrize("form", ["none", "tanh"])


def exact(x: Tensor, form: str = "none") -> Tensor:
    """GELU in float64, without cancellation: through erfc, or the logistic function."""
    x = x.double()
    if form == "tanh":
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return x * torch.special.erfc(-x / math.sqrt(2)) / 2


def line(device: torch.device) -> Tensor:
    """float32 numbers from -12 to 12, dense around zero."""
    half = torch.cat([torch.linspace(0, 12, 60_000), torch.logspace(-30, 0, 4_000)])
    return torch.cat([-half, half])[None].to(device)


@pytest.mark.parametrize(
    ("function", "form", "bound"),
    [(gelu_half, "none", 1e-6), (gelu_exact, "none", 2e-7), (gelu_tanh, "tanh", 2e-7)],
    ids=["half", "exact", "tanh"],
)
def test_the_error_is_below_its_bound(device: torch.device, function: Any, form: str, bound: float) -> None:
    x = line(device)
    found = apply(function, x, torch.float32, None)[0].double()
    wanted = exact(x, form)
    # half a unit in the last place of the result comes on top where that is large
    assert ((found - wanted).abs() <= bound + 2.0**-24 * wanted.abs()).all()
    near = (x.abs() <= 5) & (x != 0)
    assert ((found - wanted).abs() <= 0.015 * wanted.abs())[near].all()
    assert ((found - wanted).abs() <= 1e-4 * wanted.abs())[near & (x.abs() < 2)].all()


@FORMS
def test_every_bfloat16_number(device: torch.device, form: str) -> None:
    x = torch.arange(65_536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = x[x.isfinite() & (x.abs() < 1e30)][None].to(device)
    values, _ = gelu(x, dtype=torch.bfloat16, approximate=form)
    assert_written(values, None, exact(x, form), error=1e-6)


@FORMS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_at_the_ends_of_the_line(device: torch.device, dtype: torch.dtype, form: str) -> None:
    x = torch.tensor([[0.0, -0.0, 1e30, -1e30, float("inf"), -float("inf"), float("nan")]], device=device)
    values = gelu(x, dtype=dtype, approximate=form)[0].float()[0]
    assert values[:6].tolist() == [0, 0, torch.tensor(1e30).to(dtype).item(), 0, float("inf"), 0]
    assert values[6].isnan()


@FORMS
@pytest.mark.parametrize("dtype", [FP8, INT8, torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (5, 77), (3, 768), (2, 4096)])
def test_it_is_written_as_asked(
    device: torch.device, shape: tuple[int, int], given: torch.dtype, dtype: torch.dtype, form: str
) -> None:
    x = rows_of(*shape).to(device, given)
    wanted = exact(x, form)
    values, scale = gelu(x, dtype=dtype, approximate=form)
    assert values.dtype == dtype
    assert_written(values, scale, wanted, error=1e-6)
    if dtype in (FP8, INT8):
        assert_own_scales(scale, wanted, dtype, error=1e-6)
        step = torch.tensor([0.021], device=device)
        values, scale = gelu(x, dtype=dtype, scale=step, approximate=form)
        assert scale is step
        assert_written(values, scale, wanted, error=1e-6)


def test_rows_that_give_next_to_nothing(device: torch.device) -> None:
    x = torch.stack([torch.zeros(50), torch.full((50,), -20.0), torch.full((50,), -1e4), torch.full((50,), 100.0)])
    codes, scale = gelu(x.to(device), dtype=FP8)
    assert scale is not None and scale.isfinite().all() and (scale > 0).all()
    assert (codes.float()[:3] == 0).all() and (codes.float()[3] == 448).all()


def test_only_known_forms(device: torch.device) -> None:
    with pytest.raises(ValueError, match="'fast'"):
        gelu(torch.zeros(1, 1, device=device), dtype=torch.float32, approximate="fast")
    assert activation("none", torch.float32) is gelu_exact
