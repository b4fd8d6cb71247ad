"""Attention of the few hundred tokens of an image, from the product's output to the next product's input in one pass.

    codes = attention(qkv, 16, dtype=torch.float8_e4m3fn, scale=step)          # (B, N, 3·H·D) -> (B·N, H·D)
    values = attention(qkv, 16, dtype=torch.bfloat16, sizes=sizes)             # tokens that stand for several

Queries, keys and values are read where the product left them, and the output is written as rows of codes: no copy, no
pass that casts. All keys of a head fit at once, so each score is computed once and the softmax needs no second look; 197
tokens are taken as 128 + 64 + 16 keys, not as 256, which saves a fifth of the exponentials. One program goes through all
queries of a head where there are heads enough to fill the GPU, so that keys and values are loaded once. Longer sequences
are streamed, block of keys by block (FlashAttention-2: Dao, 2023, arXiv:2307.08691).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from petalite.engine.kernels import power_of_two
from petalite.engine.kernels.quantize import CODES, PLAIN, encode

#: More keys at once do not fit the registers.
_MOST_AT_ONCE = 256
#: Of an H100 or H200: multiprocessors, and shared memory that a program may have.
_MULTIPROCESSORS, _HOPPER_BYTES = 132, 227 * 1024


@dataclass(frozen=True)
class Config:
    """How attention is cut; its `str` is a stable name.

    rows: queries taken at a time. warps: of a program. block: keys taken at a time, 0 for all of them (up to 256 tokens).
    parts: programs that share the queries of one head. registers: the most that a thread may use, 0 for the compiler's
    choice: fewer let more programs run at once.
    stages: blocks of queries (or of keys, where those are streamed) on their way at once.
    dependent: the programs may start before the kernel ahead has ended, and wait for it themselves, and the kernel behind
    likewise (Hopper and newer, also in CUDA graphs).
    """

    rows: int = 64
    warps: int = 4
    block: int = 0
    parts: int = 1
    registers: int = 0
    stages: int = 2
    dependent: bool = False

    def __str__(self) -> str:
        """`64 rows, all keys, 4 warps, 1 part`."""
        keys = f"{self.block} keys" if self.block else "all keys"
        registers = f", {self.registers} registers" if self.registers else ""
        ahead = ", dependent" if self.dependent else ""
        return (
            f"{self.rows} rows, {keys}, {self.warps} warps, {self.parts} parts{registers}, {self.stages} stages{ahead}"
        )


def attention(
    qkv: Tensor,
    heads: int,
    *,
    dtype: torch.dtype,
    scale: Tensor | None = None,
    sizes: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """softmax(Q Kᵀ / √D + log sizes) V of each head: qkv (B, N, 3·H·D) -> (B·N, H·D) of `dtype`.

    qkv: bfloat16 or float16 (float32 on CPUs only, where tests run this): queries, keys, values, H heads of D channels
    each. D: 16 to 128, a multiple of 16.
    scale: float32, one element: what a step of the codes is worth, where `dtype` is float8_e4m3fn or int8.
    sizes: float32 (B, N), how many tokens each key stands for. config: by the shape alone when None.
    Raises ValueError for tensors that do not fit, and for a config that takes all keys at once where there are too many.
    """
    B, N, D = _shape(qkv, heads, dtype, scale, sizes)
    out = torch.empty(B * N, heads * D, dtype=dtype, device=qkv.device)
    if out.numel() == 0:
        return out
    config = config or configs(B, N, heads, D, _shared_bytes(qkv.device))[0]
    if not config.block and N > _MOST_AT_ONCE:
        raise ValueError(f"{N} keys do not fit at once; {_MOST_AT_ONCE} do")
    tiles = triton.cdiv(N, config.rows)
    each = triton.cdiv(tiles, config.parts)
    # e^x is 2^(x · log2 e): the factor goes with the scores'
    factor = math.log2(math.e) / math.sqrt(D)
    dependent = config.dependent and qkv.device.type == "cuda"
    common = (qkv, out, scale, sizes, N, heads, factor, dependent)
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


def configs(batch: int, tokens: int, heads: int, size: int, shared_bytes: int = _HOPPER_BYTES) -> tuple[Config, ...]:
    """At most 8 configs worth a trial, the likeliest first: `batch` images of `tokens`, heads of `size` channels.

    shared_bytes: shared memory that a program may have; programs start ahead only where it is what Hopper has or more.
    """
    streamed = (Config(64, 4, block=64), Config(128, 8, block=64))
    if tokens > _MOST_AT_ONCE:
        return (Config(128, 8, block=64), Config(64, 4, block=64), Config(128, 8, block=128), Config(64, 4, block=128))
    # all keys and values of a head, and two blocks of queries
    if 2 * power_of_two(size) * (2 * sum(pieces(tokens)) + 2 * 64) + 4_096 > shared_bytes:
        return streamed
    tiles = -(-tokens // 64)
    # programs enough for three on each multiprocessor, but no more than there are queries for
    parts = max(1, min(tiles, 3 * _MULTIPROCESSORS // (batch * heads)))
    tight = Config(64, 4, parts=parts, registers=168)  # three programs fit a multiprocessor
    found = [tight, Config(64, 4, parts=parts)]
    if batch * heads < 3 * _MULTIPROCESSORS:
        found.reverse()  # one program on each multiprocessor has all its registers
        if shared_bytes >= _HOPPER_BYTES:
            found += [replace(config, dependent=True) for config in found]
    found += [replace(tight, stages=1), replace(tight, parts=1 if parts > 1 else 2), *streamed]
    return tuple(dict.fromkeys(found))


def pieces(tokens: int) -> tuple[int, int, int]:
    """Powers of two, from 16 on, that hold `tokens` keys with little to spare: 197 -> (128, 64, 16); 0 for none."""
    left = max(16, -(-tokens // 16) * 16)
    found: list[int] = []
    while left and len(found) < 2:
        found.append(power_of_two(left + 1) // 2)  # the largest that fits
        left -= found[-1]
    if left:
        found.append(power_of_two(left))
    while len(found) > 1 and found[-1] == found[-2]:
        found[-2:] = [2 * found[-1]]
    first, second, third = [*found, 0, 0][:3]
    return first, second, third


# one compilation for all numbers of tokens that are cut alike
@triton.jit(do_not_specialize=["N", "tiles"])
def _whole(
    qkv: tl.tensor,
    out: tl.tensor,
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
    stride = 3 * heads * D
    queries, image = _queries(qkv, N, heads, D)
    keys = queries + heads * D
    values = keys + heads * D
    k1 = _rows(keys, 0, N, stride, FIRST, D, WIDE)
    if SECOND:
        k2 = _rows(keys, FIRST, N, stride, SECOND, D, WIDE)
    if THIRD:
        k3 = _rows(keys, FIRST + SECOND, N, stride, THIRD, D, WIDE)
    v1 = _rows(values, 0, N, stride, FIRST, D, WIDE)
    if SECOND:
        v2 = _rows(values, FIRST, N, stride, SECOND, D, WIDE)
    if THIRD:
        v3 = _rows(values, FIRST + SECOND, N, stride, THIRD, D, WIDE)
    start = tl.program_id(0) * tiles
    for tile in range(start, tl.minimum(start + tiles, tl.cdiv(N, ROWS))):
        q = _rows(queries, tile * ROWS, N, stride, ROWS, D, WIDE)
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
        sums = tl.dot(p1.to(q.dtype), v1, input_precision="ieee")
        if SECOND:
            p2 = _shares(s2, most, factor, sizes, image, FIRST, N, SECOND)
            total += tl.sum(p2, 1)
            sums = tl.dot(p2.to(q.dtype), v2, sums, input_precision="ieee")
        if THIRD:
            p3 = _shares(s3, most, factor, sizes, image, FIRST + SECOND, N, THIRD)
            total += tl.sum(p3, 1)
            sums = tl.dot(p3.to(q.dtype), v3, sums, input_precision="ieee")
        _write(out, scale, sums, total, image, tile * ROWS, N, heads, ROWS, D, WIDE)


@triton.jit(do_not_specialize=["N"])
def _streamed(
    qkv: tl.tensor,
    out: tl.tensor,
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
    queries, image = _queries(qkv, N, heads, D)
    keys = queries + heads * D
    values = keys + heads * D
    row = tl.program_id(0) * ROWS
    q = _rows(queries, row, N, stride, ROWS, D, WIDE)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, WIDE), tl.float32)
    whole = N // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        k = _rows(keys, first, N, stride, BLOCK, D, WIDE)
        v = _rows(values, first, N, stride, BLOCK, D, WIDE)
        most, total, sums = _add(q, k, v, sizes, factor, image, first, N, most, total, sums, BLOCK, False)
    if TAIL:
        k = _rows(keys, whole, N, stride, TAIL, D, WIDE)
        v = _rows(values, whole, N, stride, TAIL, D, WIDE)
        most, total, sums = _add(q, k, v, sizes, factor, image, whole, N, most, total, sums, TAIL, True)
    _write(out, scale, sums, total, image, row, N, heads, ROWS, D, WIDE)


@triton.jit
def _queries(qkv: tl.tensor, N: tl.tensor, heads: tl.tensor, D: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Where the program's head begins, and its image, which the output's rows and `sizes` are found by."""
    place = tl.program_id(1)
    image = (place // heads).to(tl.int64)
    return qkv + image * N * 3 * heads * D + place % heads * D, image


@triton.jit
def _rows(
    base: tl.tensor,
    first: tl.tensor,
    N: tl.tensor,
    stride: tl.tensor,
    COUNT: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
) -> tl.tensor:
    """COUNT rows of D channels from `first` on; zeros beyond the last token and the last channel."""
    rows = first + tl.arange(0, COUNT)
    channels = tl.arange(0, WIDE)
    inside = (rows < N)[:, None]
    if D != WIDE:
        inside = inside & (channels < D)[None, :]
    return tl.load(base + rows[:, None] * stride + channels[None, :], mask=inside, other=0.0)


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
    sums = tl.dot(shares.to(q.dtype), v, sums * rest[:, None], input_precision="ieee")
    return largest, total, sums


@triton.jit
def _write(
    out: tl.tensor,
    scale: tl.tensor,
    sums: tl.tensor,
    total: tl.tensor,
    image: tl.tensor,
    row: tl.tensor,
    N: tl.tensor,
    heads: tl.tensor,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """sums / total as the rows of the output that belong to these tokens and this head."""
    rows = row + tl.arange(0, ROWS)
    channels = tl.arange(0, WIDE)
    inside = (rows < N)[:, None] & (channels < D)[None, :]
    step = 1.0 if scale is None else tl.load(scale)
    # one reciprocal a row does for the softmax and for the codes
    written = encode(sums * (1.0 / (total * step))[:, None], 1.0, out.dtype.element_ty)
    here = out + image * N * heads * D + tl.program_id(1) % heads * D
    tl.store(here + rows[:, None] * (heads * D) + channels[None, :], written, mask=inside)


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _HOPPER_BYTES
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)


def _shape(
    qkv: Tensor, heads: int, dtype: torch.dtype, scale: Tensor | None, sizes: Tensor | None
) -> tuple[int, int, int]:
    """B, N, D. Raises ValueError for tensors that do not fit."""
    if qkv.ndim != 3 or qkv.dtype not in PLAIN or not qkv.is_contiguous():
        raise ValueError(f"expected contiguous floating-point qkv (B, N, 3·H·D), got {qkv.dtype} of {tuple(qkv.shape)}")
    if qkv.dtype == torch.float32 and qkv.device.type == "cuda":
        raise ValueError("attention of float32 is left to PyTorch on a GPU: its tensor cores have fewer bits")
    B, N, width = qkv.shape
    D = width // (3 * heads)
    if width != 3 * heads * D or D % 16 or not 16 <= D <= 128:
        raise ValueError(f"{width} is not 3 times {heads} heads of 16 to 128 channels, a multiple of 16")
    if dtype not in CODES + PLAIN:
        raise ValueError(f"cannot write {dtype}; one of {', '.join(map(str, CODES + PLAIN))}")
    if (scale is not None) != (dtype in CODES):
        raise ValueError(f"{dtype} {'needs a' if dtype in CODES else 'takes no'} scale")
    if scale is not None and (scale.dtype != torch.float32 or scale.numel() != 1 or scale.device != qkv.device):
        raise ValueError(f"a scale is one float32 on {qkv.device}, not {scale.numel()} {scale.dtype} on {scale.device}")
    if sizes is not None and (
        sizes.shape != (B, N) or sizes.dtype != torch.float32 or sizes.device != qkv.device or not sizes.is_contiguous()
    ):
        raise ValueError(
            f"sizes are contiguous float32 {(B, N)} on {qkv.device}, not {sizes.dtype} {tuple(sizes.shape)}"
        )
    return B, N, D
