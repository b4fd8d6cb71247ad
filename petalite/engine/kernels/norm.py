"""Residual add, LayerNorm and rounding to what the next product takes, in one pass over the rows.

    codes, scale = norm(x, weight, bias, 1e-6, add=product, dtype=torch.float8_e4m3fn)     # x += product, in place

A row stays in registers between its one load and its stores, so 7 bytes a value are moved (16-bit values, 8-bit codes)
where the steps one by one move 16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from petalite.engine.kernels import Launch, Quantized, dependent, options, row_launch
from petalite.engine.kernels.launching import launched
from petalite.engine.kernels.quantize import check, encode, outputs, row_scale


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    add: Tensor | None = None,
    dtype: torch.dtype,
    scale: Tensor | None = None,
    launch: Launch | None = None,
) -> Quantized:
    """LayerNorm of each row of `x` (rows, C) as `dtype`, and its scale; `dtype` and `scale` as in `quantize`.

    add: (rows, C), added to `x` in place first; what is normalized is the sum as `x` then holds it.
    weight, bias: (C,). Sums are taken in float32, the variance from the centred values.
    launch: how rows are cut; chosen by their shape when None. Raises ValueError as `quantize` does.
    """
    check(x, weight, bias, *(() if add is None else (add,)))
    rows, C = x.shape
    if weight.shape != (C,) or bias.shape != (C,) or (add is not None and add.shape != x.shape):
        raise ValueError(f"weight, bias or add does not fit x of {tuple(x.shape)}")
    out, scale_out = outputs(x, dtype, scale)
    launch = launch or row_launch(rows, C)
    with torch.cuda.device_of(x):
        launched(_norm, (triton.cdiv(rows, launch.rows),))(
            x, add, weight, bias, out, scale_out, rows, eps, C, scale_out is not scale, launch.rows, launch.block,
            dependent(x.device), **options(launch.warps, x.device),
        )  # fmt: skip
    return out, scale_out


@triton.jit
def _norm(
    x: tl.tensor,
    add: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    rows: tl.tensor,
    eps: tl.tensor,
    C: tl.constexpr,
    OWN_SCALES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    first = tl.program_id(0) * ROWS
    start = first.to(tl.int64) * C
    row = tl.arange(0, ROWS)
    column = tl.max_contiguous(tl.arange(0, BLOCK), 8)[None, :]  # 16 bytes a thread, as in `quantize`
    within = column < C
    inside = within if ROWS == 1 else (row < rows - first)[:, None] & within  # one row is always there
    offsets = row[:, None] * C + column

    # everything is asked for before anything is used: the waits overlap
    value = tl.load(x + start + offsets, mask=inside, other=0.0).to(tl.float32)
    if add is not None:
        added = tl.load(add + start + offsets, mask=inside, other=0.0).to(tl.float32)
    # a thread reads gain and shift of its own columns, for each of its rows: nothing moves between threads
    own = tl.broadcast_to(column, (ROWS, BLOCK))
    gain = tl.load(weight + own, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + own, mask=inside, other=0.0).to(tl.float32)
    if scale is None or OWN_SCALES:
        inverse = 1.0
    else:
        inverse = 1.0 / tl.load(scale)

    if add is not None:
        kept = (value + added).to(x.dtype.element_ty)
        tl.store(x + start + offsets, kept, mask=inside)
        value = kept.to(tl.float32)
    mean = tl.sum(value, axis=1) * (1.0 / C)
    centred = tl.where(within, value - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) * (1.0 / C)
    result = centred * tl.rsqrt(variance + eps)[:, None] * gain + shift
    if OWN_SCALES:
        step = row_scale(result, out.dtype.element_ty)
        tl.store(scale + first + row, step, mask=row < rows - first)
        codes = encode(result, (1.0 / step)[:, None], out.dtype.element_ty)
    else:
        codes = encode(result, inverse, out.dtype.element_ty)
    tl.store(out + start + offsets, codes, mask=inside)
