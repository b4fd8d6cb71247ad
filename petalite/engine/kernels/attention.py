"""Attention of the few hundred tokens of an image, from the product's output to the next product's input in one pass.

    codes = attention(qkv, 16, dtype=torch.float8_e4m3fn, scale=step)          # (B, N, 3·H·D) -> (B·N, H·D)
    values = attention(qkv, 16, dtype=torch.bfloat16, sizes=sizes)             # tokens that stand for several
    codes = attention(codes, 16, step=one, dtype=torch.float8_e4m3fn, scale=step)    # queries, keys, values in 8 bits

Queries, keys and values are read where the product left them, and the output is written as rows of codes: no copy, no
pass that casts. All keys of a head fit at once, so each score is computed once and the softmax needs no second look; 197
tokens are taken as 128 + 64 + 16 keys, not as 256, which saves a fifth of the exponentials. One program goes through all
queries of a head where there are heads enough to fill the GPU, so that keys and values are loaded once. Longer sequences
are streamed, block of keys by block (FlashAttention-2: Dao, 2023, arXiv:2307.08691).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from petalite.engine.kernels import power_of_two, shared_bytes
from petalite.engine.kernels.cuts import MOST_AT_ONCE, Config, configs, pieces
from petalite.engine.kernels.heads import (
    add_keys,
    attend,
    places_in_pieces,
    plain,
    queries_of,
    read_pieces,
    rows_of,
    write,
)
from petalite.engine.kernels.launching import launched
from petalite.engine.kernels.quantize import CODES, PLAIN

__all__ = ["Config", "attention", "configs", "pieces"]


def attention(
    qkv: Tensor,
    heads: int,
    *,
    dtype: torch.dtype,
    step: Tensor | None = None,
    scale: Tensor | None = None,
    sizes: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """softmax(Q Kᵀ / √D + log sizes) V of each head: qkv (B, N, 3·H·D) -> (B·N, H·D) of `dtype`.

    qkv: bfloat16 or float16 (float32 on CPUs only, where tests run this), or codes, float8_e4m3fn: queries, keys, values,
    H heads of D channels each. D: 16 to 128, a multiple of 16; of codes, of 32. step: float32, one element: what a step
    of those codes is worth. Codes of queries and keys are multiplied as they are, those of values in float16.
    scale: float32, one element: what a step of the codes is worth, where `dtype` is float8_e4m3fn or int8.
    sizes: float32 (B, N), how many tokens each key stands for. config: by the shape alone when None.
    Raises ValueError for tensors that do not fit, and for a config that takes all keys at once where there are too many.
    """
    B, N, D = _shape(qkv, heads, dtype, step, scale, sizes)
    out = torch.empty(B * N, heads * D, dtype=dtype, device=qkv.device)
    if out.numel() == 0:
        return out
    config = config or configs(B, N, heads, D, shared_bytes(qkv.device))[0]
    if not config.block and N > MOST_AT_ONCE:
        raise ValueError(f"{N} keys do not fit at once; {MOST_AT_ONCE} do")
    tiles = triton.cdiv(N, config.rows)
    each = triton.cdiv(tiles, config.parts)
    # e^x is 2^(x · log2 e): the factor goes with the scores'
    factor = math.log2(math.e) / math.sqrt(D)
    dependent = config.dependent and qkv.device.type == "cuda"
    common = (qkv, out, step, scale, sizes, N, heads, factor, dependent)
    shape = (D, power_of_two(D), config.rows)
    options: dict[str, Any] = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
    if config.registers and qkv.device.type == "cuda":
        options["maxnreg"] = config.registers
    if dependent:
        options["launch_pdl"] = True
    with torch.cuda.device_of(qkv):
        if config.block:
            tail = N % config.block
            launched(_streamed, (tiles, B * heads))(
                *common, *shape, config.block, max(16, power_of_two(tail)) if tail else 0, **options
            )
        else:
            grid = (triton.cdiv(tiles, each), B * heads)
            # merged tokens come in many numbers: fewer of them are compiled for
            launched(_whole, grid)(*common, each, *shape, *pieces(N if sizes is None else -(-N // 32) * 32), **options)
    return out


# one compilation for all numbers of tokens that are cut alike
@triton.jit(do_not_specialize=["N", "tiles"])
def _whole(
    qkv: tl.tensor,
    out: tl.tensor,
    step: tl.tensor,
    scale: tl.tensor,
    sizes: tl.tensor,
    N: tl.tensor,
    heads: tl.tensor,
    factor: tl.tensor,
    DEPENDENT: tl.constexpr,
    tiles: tl.tensor,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
) -> None:
    """All keys at once, in up to three pieces (0: none), for `tiles` blocks of queries."""
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    one = 1.0 if step is None else tl.load(step)
    written = 1.0 if scale is None else tl.load(scale)
    start = tl.program_id(0) * tiles
    stop = tl.minimum(start + tiles, tl.cdiv(N, ROWS))
    stride = 3 * heads * D
    factor *= one * one
    queries, image = queries_of(qkv, tl.program_id(1), N, heads, D)
    keys = queries + heads * D
    places = places_in_pieces(keys, stride, WIDE, FIRST, SECOND, THIRD)
    k1, k2, k3 = read_pieces(places, N, D, WIDE, FIRST, SECOND, THIRD)
    places = places_in_pieces(keys + heads * D, stride, WIDE, FIRST, SECOND, THIRD)
    v1, v2, v3 = read_pieces(places, N, D, WIDE, FIRST, SECOND, THIRD)
    v1, v2, v3 = plain(v1), plain(v2), plain(v3)
    for tile in range(start, stop):
        q = rows_of(queries, tile * ROWS, N, stride, ROWS, D, WIDE)
        sums, total = attend(q, k1, k2, k3, v1, v2, v3, sizes, image, factor, N, FIRST, SECOND, THIRD)
        write(out, one, written, sums, total, image, tl.program_id(1) % heads, tile * ROWS, N, heads, ROWS, D, WIDE)


@triton.jit(do_not_specialize=["N"])
def _streamed(
    qkv: tl.tensor,
    out: tl.tensor,
    step: tl.tensor,
    scale: tl.tensor,
    sizes: tl.tensor,
    N: tl.tensor,
    heads: tl.tensor,
    factor: tl.tensor,
    DEPENDENT: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
) -> None:
    """BLOCK keys at a time, then TAIL for what is left (0: nothing is), for one block of queries."""
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    stride = 3 * heads * D
    one = 1.0 if step is None else tl.load(step)
    written = 1.0 if scale is None else tl.load(scale)
    factor *= one * one
    queries, image = queries_of(qkv, tl.program_id(1), N, heads, D)
    keys = queries + heads * D
    values = keys + heads * D
    row = tl.program_id(0) * ROWS
    q = rows_of(queries, row, N, stride, ROWS, D, WIDE)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, WIDE), tl.float32)
    whole = N // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        k = rows_of(keys, first, N, stride, BLOCK, D, WIDE)
        v = rows_of(values, first, N, stride, BLOCK, D, WIDE)
        most, total, sums = add_keys(q, k, v, sizes, factor, image, first, N, most, total, sums, BLOCK, False)
    if TAIL:
        k = rows_of(keys, whole, N, stride, TAIL, D, WIDE)
        v = rows_of(values, whole, N, stride, TAIL, D, WIDE)
        most, total, sums = add_keys(q, k, v, sizes, factor, image, whole, N, most, total, sums, TAIL, True)
    write(out, one, written, sums, total, image, tl.program_id(1) % heads, row, N, heads, ROWS, D, WIDE)


def _shape(
    qkv: Tensor, heads: int, dtype: torch.dtype, step: Tensor | None, scale: Tensor | None, sizes: Tensor | None
) -> tuple[int, int, int]:
    """B, N, D. Raises ValueError for tensors that do not fit."""
    coded = qkv.dtype == torch.float8_e4m3fn
    if qkv.ndim != 3 or not (coded or qkv.dtype in PLAIN) or not qkv.is_contiguous():
        raise ValueError(f"expected contiguous floating-point qkv (B, N, 3·H·D), got {qkv.dtype} of {tuple(qkv.shape)}")
    if qkv.dtype == torch.float32 and qkv.device.type == "cuda":
        raise ValueError("attention of float32 is left to PyTorch on a GPU: its tensor cores have fewer bits")
    B, N, width = qkv.shape
    D = width // (3 * heads)
    if width != 3 * heads * D or D % 16 or not 16 <= D <= 128:
        raise ValueError(f"{width} is not 3 times {heads} heads of 16 to 128 channels, a multiple of 16")
    if coded and D % 32:
        raise ValueError(f"tensor cores take codes of 32 channels at a time, and heads have {D}")
    if dtype not in CODES + PLAIN:
        raise ValueError(f"cannot write {dtype}; one of {', '.join(map(str, CODES + PLAIN))}")
    if (scale is not None) != (dtype in CODES):
        raise ValueError(f"{dtype} {'needs a' if dtype in CODES else 'takes no'} scale")
    if (step is not None) != coded:
        raise ValueError(f"qkv of {qkv.dtype} {'needs a' if coded else 'takes no'} step")
    for one in (step, scale):
        if one is not None and (one.dtype != torch.float32 or one.numel() != 1 or one.device != qkv.device):
            raise ValueError(f"a scale is one float32 on {qkv.device}, not {one.numel()} {one.dtype} on {one.device}")
    if sizes is not None and (
        sizes.shape != (B, N) or sizes.dtype != torch.float32 or sizes.device != qkv.device or not sizes.is_contiguous()
    ):
        raise ValueError(
            f"sizes are contiguous float32 {(B, N)} on {qkv.device}, not {sizes.dtype} {tuple(sizes.shape)}"
        )
    return B, N, D
