"""Values as the 8-bit codes that a matrix product takes, with one scale for all of them or one for each row.

    codes, scale = quantize(x, torch.float8_e4m3fn)        # a scale for each row, from its largest value
    codes, scale = quantize(x, torch.int8, step)           # one for all, known from calibration: no reduction

A code is round(value / scale), ties to even: int8 within ±127, float8 (e4m3) within ±448. Every kernel that writes codes
does so through `encode` and `row_scale`, and every element-wise one through `apply`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from petalite.engine.kernels import Launch, Quantized, dependent, line_launch, options, row_launch
from petalite.engine.kernels.launching import launched

CODES = (torch.float8_e4m3fn, torch.int8)
PLAIN = (torch.bfloat16, torch.float16, torch.float32)


def quantize(x: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> Quantized:
    """`x` (rows, C) as `dtype`, and the scale: `scale` itself, or float32 (rows,) where it is None and `dtype` 8-bit.

    scale: float32, one element on the device: what one step of the codes is worth. A row of zeros has scale 1.
    bfloat16, float16 and float32 are a plain cast, without a scale. Values have to be finite.
    Raises ValueError for tensors that are not contiguous, not on one device, or of a type or shape that does not fit.
    """
    return apply(unchanged, x, dtype, scale)


def apply(
    function: Any, x: Tensor, dtype: torch.dtype, scale: Tensor | None, launch: Launch | None = None
) -> Quantized:
    """`function`, a Triton one that maps float32 values to float32 values, of each value of `x`; else as `quantize`.

    launch: how the rows are cut, or all values in a line where rows have no scales of their own; by the shape when None.
    """
    check(x)
    out, scale_out = outputs(x, dtype, scale)
    rows, C = x.shape
    with torch.cuda.device_of(x):
        if scale_out is not scale:
            launch = launch or row_launch(rows, C)
            launched(_rows, (triton.cdiv(rows, launch.rows),))(
                x, out, scale_out, rows, C, function, launch.rows, launch.block, dependent(x.device),
                **options(launch.warps, x.device),
            )  # fmt: skip
        else:
            launch = launch or line_launch(x.numel())
            launched(_flat, (triton.cdiv(x.numel(), launch.block),))(
                x, out, scale, x.numel(), function, launch.block, dependent(x.device), **options(launch.warps, x.device)
            )
    return out, scale_out


def outputs(x: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Quantized:
    """Empty values of `dtype` shaped as `x` (rows, C), and the scale: a new one for each row, or the one given.

    Raises ValueError for a `dtype` that is not written, and for a scale that does not fit.
    """
    if dtype not in CODES + PLAIN:
        raise ValueError(f"cannot write {dtype}; one of {', '.join(map(str, CODES + PLAIN))}")
    if scale is not None:
        if dtype in PLAIN:
            raise ValueError(f"{dtype} takes no scale: it is not a code")
        if scale.dtype != torch.float32 or scale.numel() != 1 or scale.device != x.device:
            raise ValueError(
                f"a scale is one float32 on {x.device}, not {scale.numel()} {scale.dtype} on {scale.device}"
            )
    elif dtype in CODES:
        scale = torch.empty(len(x), dtype=torch.float32, device=x.device)
    return torch.empty(x.shape, dtype=dtype, device=x.device), scale


def check(x: Tensor, *others: Tensor) -> None:
    """Raise ValueError unless `x` is a floating-point matrix and all are contiguous, on its device."""
    if x.ndim != 2 or x.dtype not in PLAIN:
        raise ValueError(f"expected a floating-point matrix, got {x.dtype} of {tuple(x.shape)}")
    for tensor in (x, *others):
        if not tensor.is_contiguous() or tensor.device != x.device:
            raise ValueError(
                f"expected a contiguous tensor on {x.device}, got strides {tensor.stride()} on {tensor.device}"
            )


@triton.jit
def encode(value: tl.tensor, inverse: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """float32 -> `dtype`: the codes of value · inverse where it has 8 bits (`inverse` is 1 / scale), else the value."""
    if dtype == tl.int8:
        # From 1.5 · 2**23 on, float32 numbers are 1 apart: the sum is rounded to nearest even by the adder,
        # and its lowest byte is the code in two's complement.
        shifted = value * inverse + 12582912.0
        shifted = tl.minimum(tl.maximum(shifted, 12582912.0 - 127), 12582912.0 + 127)
        return shifted.to(tl.int32, bitcast=True).to(tl.int8)
    elif dtype == tl.float8e4nv:
        return (value * inverse).to(dtype)  # the conversion itself saturates at ±448 (PTX: cvt.rn.satfinite.e4m3x2)
    else:
        return value.to(dtype)


@triton.jit
def row_scale(value: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """float32 (R, B) -> (R,): what makes each row's largest value the largest code. Its reciprocal is finite."""
    largest = tl.max(tl.abs(value), axis=1)
    step = largest * (1.0 / 127.0) if dtype == tl.int8 else largest * (1.0 / 448.0)
    return tl.where(largest > 0, tl.maximum(step, 2.0**-120), 1.0)


@triton.jit
def unchanged(value: tl.tensor) -> tl.tensor:
    """The value itself."""
    return value


@triton.jit
def _flat(
    x: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    count: tl.tensor,
    function: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    start = tl.program_id(0).to(tl.int64) * BLOCK
    # runs of 8: 16 bytes a thread of a half-precision input; without the hint 16 one-byte codes, and loads with gaps
    offsets = tl.max_contiguous(tl.arange(0, BLOCK), 8)
    inside = offsets < count - start
    value = tl.load(x + start + offsets, mask=inside).to(tl.float32)
    inverse = 1.0 if scale is None else 1.0 / tl.load(scale)
    tl.store(out + start + offsets, encode(function(value), inverse, out.dtype.element_ty), mask=inside)


@triton.jit
def _rows(
    x: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    rows: tl.tensor,
    C: tl.constexpr,
    function: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    first = tl.program_id(0) * ROWS
    row = tl.arange(0, ROWS)
    column = tl.max_contiguous(tl.arange(0, BLOCK), 8)[None, :]
    inside = column < C if ROWS == 1 else (row < rows - first)[:, None] & (column < C)  # one row is always there
    offsets = row[:, None] * C + column
    start = first.to(tl.int64) * C
    value = function(tl.load(x + start + offsets, mask=inside, other=0.0).to(tl.float32))
    step = row_scale(value, out.dtype.element_ty)
    tl.store(scale + first + row, step, mask=row < rows - first)
    tl.store(out + start + offsets, encode(value, (1.0 / step)[:, None], out.dtype.element_ty), mask=inside)
