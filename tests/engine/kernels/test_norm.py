"""LayerNorm of what the residual stream holds after the addition, which stays in place, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from petalite.engine.kernels import Launch
from petalite.engine.kernels.norm import norm
from tests.engine.kernels.codes import FP8, INT8, assert_own_scales, assert_written, rows_of

EPS = 1e-6


def exact(x: Tensor, weight: Tensor, bias: Tensor, eps: float = EPS) -> Tensor:
    """LayerNorm in float64."""
    x = x.double()
    centred = x - x.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)
    return centred / (variance + eps).sqrt() * weight.double() + bias.double()


def affine(columns: int, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(2, columns, generator=generator).unbind()
    return (weight * 0.3 + 1).to(device, dtype), (bias * 0.1).to(device, dtype)


@pytest.mark.parametrize("dtype", [FP8, INT8, torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("stream", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 192), (3, 768), (2, 1000), (4, 1024), (2, 1280)])
def test_add_norm_and_write(
    device: torch.device, shape: tuple[int, int], stream: torch.dtype, dtype: torch.dtype
) -> None:
    x, add = (rows_of(*shape, seed=seed).to(device, stream) for seed in (2, 3))
    weight, bias = affine(shape[1], device)
    total = (x.float() + add.float()).to(stream)
    wanted = exact(total, weight, bias)
    error = 4e-6 * float(wanted.abs().max() + 1)
    kept = add.clone()
    values, scale = norm(x, weight, bias, EPS, add=add, dtype=dtype)
    assert values.dtype == dtype
    assert torch.equal(x, total) and torch.equal(add, kept)
    assert_written(values, scale, wanted, error)
    if dtype in (FP8, INT8):
        assert_own_scales(scale, wanted, dtype, error)
        step = torch.tensor([0.043], device=device)
        values, scale = norm(x, weight, bias, EPS, dtype=dtype, scale=step)
        assert scale is step
        assert_written(values, scale, wanted, error)
    assert torch.equal(x, total)


def test_the_stream_may_be_wider_than_what_is_added(device: torch.device) -> None:
    x, add = rows_of(5, 96, seed=2).to(device), rows_of(5, 96, seed=3).to(device, torch.bfloat16)
    weight, bias = affine(96, device, torch.bfloat16)
    total = x + add.float()
    values, _ = norm(x, weight, bias, EPS, add=add, dtype=torch.float32)
    assert torch.equal(x, total)
    assert_written(values, None, exact(total, weight, bias), 2e-5)


@pytest.mark.parametrize("dtype", [FP8, INT8, torch.float32], ids=str)
def test_constant_rows_give_the_bias(device: torch.device, dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 1.0, -300.0, 2.0**40], device=device)[:, None].expand(4, 256).contiguous()
    weight, bias = affine(256, device)
    values, scale = norm(x, weight, bias, EPS, dtype=dtype)
    assert_written(values, scale, bias.double().expand(4, 256), 1e-6)


def test_a_bias_of_zero_and_a_constant_row_are_all_zeros(device: torch.device) -> None:
    x = torch.full((2, 64), 7.0, device=device)
    codes, scale = norm(x, torch.ones(64, device=device), torch.zeros(64, device=device), EPS, dtype=FP8)
    assert scale is not None and scale.tolist() == [1, 1]
    assert (codes.float() == 0).all()


def test_a_large_mean_does_not_swallow_the_variance(device: torch.device) -> None:
    x = torch.randn(3, 768, generator=torch.Generator().manual_seed(4)).to(device) + 3e3
    weight, bias = affine(768, device)
    values, _ = norm(x, weight, bias, EPS, dtype=torch.float32)
    assert_written(values, None, exact(x, weight, bias), 5e-3)


def test_outliers_and_small_rows(device: torch.device) -> None:
    x = rows_of(4, 384, seed=5).to(device)
    x[0, 17], x[1] = 1e6, x[1] * 1e-12  # one huge channel; nothing but eps in the variance
    x[2] *= 1e15
    weight, bias = affine(384, device)
    for dtype in (torch.float32, FP8, INT8):
        values, scale = norm(x, weight, bias, EPS, dtype=dtype)
        assert_written(values, scale, exact(x, weight, bias), 1e-4)


def test_eps_counts(device: torch.device) -> None:
    x = rows_of(3, 40).to(device) * 0.01
    weight, bias = affine(40, device)
    values, _ = norm(x, weight, bias, 0.5, dtype=torch.float32)
    assert_written(values, None, exact(x, weight, bias, 0.5), 1e-5)


@pytest.mark.parametrize("dtype", [FP8, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "warps"), [(1, 1), (1, 8), (2, 1), (4, 4), (8, 2)])
def test_how_rows_are_cut_changes_rounding_at_most(
    device: torch.device, rows: int, warps: int, dtype: torch.dtype
) -> None:
    x, add = rows_of(13, 200, seed=6).to(device), rows_of(13, 200, seed=7).to(device)
    weight, bias = affine(200, device)
    total = x + add
    values, scale = norm(x, weight, bias, EPS, add=add, dtype=dtype, launch=Launch(rows, 256, warps))
    assert torch.equal(x, total)
    assert_written(values, scale, exact(total, weight, bias), 1e-4)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    x, weight, bias = torch.zeros(4, 8, device=device), *affine(8, device)
    with pytest.raises(ValueError, match="does not fit"):
        norm(x, weight[:4], bias, EPS, dtype=torch.float32)
    with pytest.raises(ValueError, match="does not fit"):
        norm(x, weight, bias, EPS, add=torch.zeros(8, 4, device=device), dtype=torch.float32)
    with pytest.raises(ValueError, match="contiguous"):
        norm(x, weight, bias, EPS, add=torch.zeros(8, 4, device=device).t(), dtype=torch.float32)
