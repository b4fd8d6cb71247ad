"""Codes are the nearest ones, ties to even, never beyond the largest; scales fit their rows, whatever the rows hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from petalite.engine.kernels import Launch, power_of_two, row_launch
from petalite.engine.kernels.quantize import apply, quantize, unchanged
from tests.engine.kernels.codes import FP8, INT8, LARGEST, assert_own_scales, assert_written, rows_of

SHAPES = [(1, 1), (3, 5), (1, 16), (7, 192), (2, 1000), (5, 1280), (2, 4096)]
CODES = pytest.mark.parametrize("dtype", [FP8, INT8], ids=["fp8", "int8"])


@CODES
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_row_fills_the_codes(
    device: torch.device, shape: tuple[int, int], given: torch.dtype, dtype: torch.dtype
) -> None:
    x = rows_of(*shape).to(device, given)
    codes, scale = quantize(x, dtype)
    assert codes.dtype == dtype
    assert_own_scales(scale, x.double(), dtype)
    assert_written(codes, scale, x.double())
    assert (codes.float().abs().amax(dim=1) == LARGEST[dtype]).all()


@CODES
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_scale_for_all(
    device: torch.device, shape: tuple[int, int], given: torch.dtype, dtype: torch.dtype
) -> None:
    x = rows_of(*shape).to(device, given)
    step = torch.tensor([0.037], device=device)
    codes, scale = quantize(x, dtype, step)
    assert scale is step
    assert_written(codes, scale, x.double())


def test_int8_rounds_ties_to_even(device: torch.device) -> None:
    ties = torch.arange(-128, 128, device=device)[None] + 0.5
    codes, _ = quantize(ties * 0.25, INT8, torch.tensor([0.25], device=device))
    assert torch.equal(codes.float(), ties.round().clamp(-127, 127))


def every_code() -> Tensor:
    """All float8 values that are numbers, in order."""
    codes = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    return codes[~codes.isnan()].unique()


def test_float8_rounds_ties_to_even(device: torch.device) -> None:
    values = every_code()
    assert len(values) == 253
    ties = ((values[1:] + values[:-1]) / 2)[None].to(device)
    codes, _ = quantize(ties, FP8, torch.ones(1, device=device))
    # an even code ends in a zero bit; the two neighbours of a tie are one even, one odd
    assert (codes.view(torch.uint8) & 1).sum() == 0
    lower, upper = values[:-1].to(device), values[1:].to(device)
    assert ((codes.float()[0] == lower) | (codes.float()[0] == upper)).all()


def test_every_float8_value_is_its_own_code(device: torch.device) -> None:
    values = every_code()[None].to(device)
    for x, step in ((values, 1.0), (values * 2.0**-12, 2.0**-12)):
        codes, _ = quantize(x, FP8, torch.tensor([step], device=device))
        assert torch.equal(codes.float(), values)


@CODES
def test_what_does_not_fit_saturates(device: torch.device, dtype: torch.dtype) -> None:
    top = LARGEST[dtype]
    x = torch.tensor(
        [[top + 0.4, top + 100, 1e10, 3e38, -top - 1e3, -3e38, float("inf"), -float("inf")]], device=device
    )
    codes, _ = quantize(x, dtype, torch.ones(1, device=device))
    assert codes.float().tolist() == [[top, top, top, top, -top, -top, top, -top]]


@CODES
def test_rows_of_extremes(device: torch.device, dtype: torch.dtype) -> None:
    x = torch.zeros(8, 33, device=device)
    x[1, 7] = 5.0  # one value, the rest zero
    x[2] = -3.0  # constant
    x[3] = 3e38
    x[3, ::2] *= -1
    x[4] = 1e-30
    x[5, 3] = 1e-44  # subnormal: its own scale would be zero
    x[6] = torch.linspace(-1, 1, 33)
    x[6, 0] = 1e4
    x[7] = -0.0
    codes, scale = quantize(x, dtype)
    top = LARGEST[dtype]
    assert scale is not None and scale.isfinite().all() and (scale > 0).all()
    assert scale[0] == 1 and scale[7] == 1
    decoded = codes.float()
    assert not decoded.isnan().any()
    assert (decoded[[0, 7]] == 0).all() and (decoded[2] == -top).all() and (decoded[4] == top).all()
    assert decoded[1].nonzero().tolist() == [[7]] and decoded[1, 7] == top
    assert (decoded[3, ::2] == -top).all() and (decoded[3, 1::2] == top).all()
    others = [0, 1, 2, 3, 4, 6, 7]
    assert_own_scales(scale[others], x[others].double(), dtype)
    assert_written(codes[others], scale[others], x[others].double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_plain_type_is_a_cast(device: torch.device, dtype: torch.dtype) -> None:
    x = rows_of(5, 37).to(device)
    values, scale = quantize(x, dtype)
    assert scale is None
    assert torch.equal(values, x.to(dtype))


@CODES
@pytest.mark.parametrize(("rows", "warps"), [(1, 1), (1, 4), (2, 1), (4, 4), (8, 2)])
def test_how_rows_are_cut_changes_nothing(device: torch.device, rows: int, warps: int, dtype: torch.dtype) -> None:
    x = rows_of(13, 100).to(device)
    codes, scale = quantize(x, dtype)
    again, scale_again = apply(unchanged, x, dtype, None, Launch(rows, 128, warps))
    assert torch.equal(codes.view(torch.uint8), again.view(torch.uint8))
    assert scale is not None and scale_again is not None and torch.equal(scale, scale_again)


@pytest.mark.parametrize(("block", "warps"), [(16, 1), (1024, 4), (4096, 4)])
def test_how_a_line_is_cut_changes_nothing(device: torch.device, block: int, warps: int) -> None:
    x, step = rows_of(13, 100).to(device), torch.tensor([0.3], device=device)
    codes, _ = quantize(x, INT8, step)
    again, _ = apply(unchanged, x, INT8, step, Launch(1, block, warps))
    assert torch.equal(codes, again)


@pytest.mark.parametrize("columns", [1, 7, 16, 64, 192, 256, 384, 768, 1024, 1280, 3072, 4096, 5120, 16384])
@pytest.mark.parametrize("rows", [1, 197, 6304, 50432])
def test_a_launch_covers_the_row(rows: int, columns: int) -> None:
    launch = row_launch(rows, columns)
    assert columns <= launch.block == power_of_two(launch.block)
    assert launch.rows == power_of_two(launch.rows) and launch.warps == power_of_two(launch.warps)
    assert launch.warps <= 16 and launch.rows * launch.block <= max(1024 * launch.warps, launch.block)


def test_no_rows(device: torch.device) -> None:
    codes, scale = quantize(torch.empty(0, 64, device=device), INT8)
    assert codes.shape == (0, 64) and scale is not None and scale.shape == (0,)


@pytest.mark.parametrize(
    ("x", "dtype", "scale", "message"),
    [
        (torch.zeros(4, 4).t()[:, :2], INT8, None, "contiguous"),
        (torch.zeros(2, 3, 4), INT8, None, "matrix"),
        (torch.zeros(2, 3, dtype=torch.int32), INT8, None, "matrix"),
        (torch.zeros(2, 3), torch.uint8, None, "cannot write"),
        (torch.zeros(2, 3), torch.bfloat16, torch.ones(1), "no scale"),
        (torch.zeros(2, 3), INT8, torch.ones(2), "one float32"),
        (torch.zeros(2, 3), INT8, torch.ones(1, dtype=torch.float64), "one float32"),
    ],
)
def test_what_does_not_belong_is_refused(x: Tensor, dtype: torch.dtype, scale: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(x, dtype, scale)
