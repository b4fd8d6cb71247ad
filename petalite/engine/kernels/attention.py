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

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from petalite.engine.kernels import power_of_two
from petalite.engine.kernels.cuts import HOPPER_BYTES, MOST_AT_ONCE, Config, configs, pieces
from petalite.engine.kernels.quantize import CODES, PLAIN, encode

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
    config = config or configs(B, N, heads, D, _shared_bytes(qkv.device))[0]
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
            _streamed[(tiles, B * heads)](
                *common, *shape, config.block, max(16, power_of_two(tail)) if tail else 0, **options
            )
        else:
            grid = (triton.cdiv(tiles, each), B * heads)
            # merged tokens come in many numbers: fewer of them are compiled for
            _whole[grid](*common, each, *shape, *pieces(N if sizes is None else -(-N // 32) * 32), **options)
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
    k1, k2, k3 = in_pieces(keys, N, stride, D, WIDE, FIRST, SECOND, THIRD)
    v1, v2, v3 = in_pieces(keys + heads * D, N, stride, D, WIDE, FIRST, SECOND, THIRD)
    v1, v2, v3 = _plain(v1), _plain(v2), _plain(v3)
    for tile in range(start, stop):
        q = rows_of(queries, tile * ROWS, N, stride, ROWS, D, WIDE)
        sums, total = attend(q, k1, k2, k3, v1, v2, v3, sizes, image, factor, N, FIRST, SECOND, THIRD)
        write(out, one, written, sums, total, image, tl.program_id(1) % heads, tile * ROWS, N, heads, ROWS, D, WIDE)


@triton.jit
def in_pieces(
    base: tl.tensor,
    N: tl.tensor,
    stride: tl.tensor,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """All keys or all values of a head; what stands for a piece of none is not read."""
    first = rows_of(base, 0, N, stride, FIRST, D, WIDE)
    second = rows_of(base, FIRST, N, stride, SECOND, D, WIDE) if SECOND else first
    third = rows_of(base, FIRST + SECOND, N, stride, THIRD, D, WIDE) if THIRD else first
    return first, second, third


@triton.jit
def attend(
    q: tl.tensor,
    k1: tl.tensor,
    k2: tl.tensor,
    k3: tl.tensor,
    v1: tl.tensor,
    v2: tl.tensor,
    v3: tl.tensor,
    sizes: tl.tensor,
    image: tl.tensor,
    factor: tl.tensor,
    N: tl.tensor,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The sums of the values for a block of queries, and of the softmax's shares."""
    s1 = _scores(q, k1, 0, N, FIRST, SECOND == 0)
    most = tl.max(s1, 1)
    if SECOND:
        s2 = _scores(q, k2, FIRST, N, SECOND, THIRD == 0)
        most = tl.maximum(most, tl.max(s2, 1))
    if THIRD:
        s3 = _scores(q, k3, FIRST + SECOND, N, THIRD, True)
        most = tl.maximum(most, tl.max(s3, 1))
    p1 = _shares(s1, most, factor, sizes, image, 0, N, FIRST)
    total = tl.sum(p1, 1)
    sums = _weighted(p1, v1, None)
    if SECOND:
        p2 = _shares(s2, most, factor, sizes, image, FIRST, N, SECOND)
        total += tl.sum(p2, 1)
        sums = _weighted(p2, v2, sums)
    if THIRD:
        p3 = _shares(s3, most, factor, sizes, image, FIRST + SECOND, N, THIRD)
        total += tl.sum(p3, 1)
        sums = _weighted(p3, v3, sums)
    return sums, total


@triton.jit
def _plain(values: tl.tensor) -> tl.tensor:
    """Values as the softmax's shares multiply them: codes as float16, which holds each of them exactly."""
    if values.dtype == tl.float8e4nv:
        return values.to(tl.float16)
    else:
        return values


@triton.jit
def _weighted(shares: tl.tensor, values: tl.tensor, sums: tl.tensor) -> tl.tensor:
    """The values' sums by these shares, added to `sums` unless that is None."""
    plain = _plain(values)
    return tl.dot(shares.to(plain.dtype), plain, sums, input_precision="ieee")


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
        most, total, sums = _add(q, k, v, sizes, factor, image, first, N, most, total, sums, BLOCK, False)
    if TAIL:
        k = rows_of(keys, whole, N, stride, TAIL, D, WIDE)
        v = rows_of(values, whole, N, stride, TAIL, D, WIDE)
        most, total, sums = _add(q, k, v, sizes, factor, image, whole, N, most, total, sums, TAIL, True)
    write(out, one, written, sums, total, image, tl.program_id(1) % heads, row, N, heads, ROWS, D, WIDE)


@triton.jit
def queries_of(
    qkv: tl.tensor, place: tl.tensor, N: tl.tensor, heads: tl.tensor, D: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Where the head at `place` begins, and its image, which the output's rows and `sizes` are found by."""
    image = (place // heads).to(tl.int64)
    return qkv + image * N * 3 * heads * D + place % heads * D, image


@triton.jit
def places_of(
    base: tl.tensor, first: tl.tensor, stride: tl.tensor, COUNT: tl.constexpr, WIDE: tl.constexpr
) -> tl.tensor:
    """Where COUNT rows from `first` on lie."""
    return base + (first + tl.arange(0, COUNT))[:, None] * stride + tl.arange(0, WIDE)[None, :]


@triton.jit
def read(
    places: tl.tensor, first: tl.tensor, N: tl.tensor, COUNT: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr
) -> tl.tensor:
    """The D channels of these rows; zeros beyond the last token and the last channel."""
    inside = (first + tl.arange(0, COUNT) < N)[:, None]
    if D != WIDE:
        inside = inside & (tl.arange(0, WIDE) < D)[None, :]
    return tl.load(places, mask=inside, other=0.0)


@triton.jit
def rows_of(
    base: tl.tensor,
    first: tl.tensor,
    N: tl.tensor,
    stride: tl.tensor,
    COUNT: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
) -> tl.tensor:
    """COUNT rows of D channels from `first` on; zeros beyond the last token and the last channel."""
    return read(places_of(base, first, stride, COUNT, WIDE), first, N, COUNT, D, WIDE)


@triton.jit
def _scores(
    q: tl.tensor, k: tl.tensor, first: tl.tensor, N: tl.tensor, COUNT: tl.constexpr, LAST: tl.constexpr
) -> tl.tensor:
    """Q Kᵀ, -inf beyond the last token, which LAST says may be among these keys."""
    scores = tl.dot(q, k.T, input_precision="ieee")
    if LAST:
        scores = tl.where((first + tl.arange(0, COUNT) < N)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def _shares(
    scores: tl.tensor,
    most: tl.tensor,
    factor: tl.tensor,
    sizes: tl.tensor,
    image: tl.tensor,
    first: tl.tensor,
    N: tl.tensor,
    COUNT: tl.constexpr,
) -> tl.tensor:
    """Softmax's numerators. The logarithm of a key's size, added to its scores, is its size as a factor here."""
    shares = tl.exp2(scores * factor - (most * factor)[:, None])
    if sizes is not None:
        columns = first + tl.arange(0, COUNT)
        shares *= tl.load(sizes + image * N + columns, mask=columns < N, other=0.0)[None, :]
    return shares


@triton.jit
def _add(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    sizes: tl.tensor,
    factor: tl.tensor,
    image: tl.tensor,
    first: tl.tensor,
    N: tl.tensor,
    most: tl.tensor,
    total: tl.tensor,
    sums: tl.tensor,
    COUNT: tl.constexpr,
    LAST: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The largest scores, the denominators and the sums with COUNT more keys."""
    scores = _scores(q, k, first, N, COUNT, LAST)
    largest = tl.maximum(most, tl.max(scores, 1))
    shares = _shares(scores, largest, factor, sizes, image, first, N, COUNT)
    rest = tl.exp2((most - largest) * factor)
    total = total * rest + tl.sum(shares, 1)
    sums = _weighted(shares, v, sums * rest[:, None])
    return largest, total, sums


@triton.jit
def write(
    out: tl.tensor,
    one: tl.tensor,
    step: tl.tensor,
    sums: tl.tensor,
    total: tl.tensor,
    image: tl.tensor,
    head: tl.tensor,
    row: tl.tensor,
    N: tl.tensor,
    heads: tl.tensor,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """one · sums / total as the rows of the output that belong to these tokens and this head."""
    rows = row + tl.arange(0, ROWS)
    channels = tl.arange(0, WIDE)
    inside = (rows < N)[:, None] & (channels < D)[None, :]
    # one factor a row does for the softmax and for the codes, those of the values and those that are written
    written = encode(sums * (one / (total * step))[:, None], 1.0, out.dtype.element_ty)
    here = out + image * N * heads * D + head * D
    tl.store(here + rows[:, None] * (heads * D) + channels[None, :], written, mask=inside)


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return HOPPER_BYTES
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)


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
