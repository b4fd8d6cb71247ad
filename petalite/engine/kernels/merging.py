"""Token merging in two short kernels: which tokens become one, and the mean of those that do.

    into = match(qkv, heads=16, count=8, protected=1)            # (B, N): where each token goes
    x, sizes = merge(x, sizes, into, 8, add=branch)              # (B, N - 8, C), (B, N - 8)

The method and the order of the tokens are those of `petalite.merging`, in which some twenty operators do this. Here a
program finds the pairs of one image without leaving the multiprocessor, sorting by counting how many pairs are more
alike; and the means are one product with a matrix of zeros and sizes, whose terms 16-bit floats hold exactly. The
residual stream is read once, with the branch that is added to it, and written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from petalite.engine.kernels import dependent, options, power_of_two, shared_bytes
from petalite.engine.kernels.launching import launched

#: Tokens of one side of the pairs, and tokens that are left alone: more do not fit a program.
_MOST_FIRSTS, _MOST_PROTECTED = 128, 16
#: Tokens and channels of a tile of means, the quickest first.
_TILES = ((64, 64), (32, 64), (32, 32), (16, 32), (16, 16))


def takes(tokens: int, protected: int, head_dim: int, device: torch.device) -> bool:
    """Whether images of so many tokens fit: up to 256 besides 16 `protected` ones, heads of up to 128 channels.

    On GPUs with little shared memory (A10, L4, T4), of up to 64 where there are more than 128 tokens.
    """
    if protected > _MOST_PROTECTED or (tokens - protected + 1) // 2 > _MOST_FIRSTS or head_dim > 128:
        return False
    block, wide = _sides(tokens, protected, head_dim)
    return _bytes_of(block, wide) <= shared_bytes(device)


def match(qkv: Tensor, heads: int, count: int, protected: int) -> Tensor:
    """The place of each token among those that are left after merging `count`, int32 (B, N).

    qkv: (B, N, 3·H·D), floating point; alike is judged by the keys. count: from 1 to half of the tokens after the first
    `protected`. Tokens with the same place become one. Raises ValueError for more tokens than `takes` allows.
    """
    B, N, width = qkv.shape
    D = width // (3 * heads)
    if not takes(N, protected, D, qkv.device) or not qkv.is_contiguous() or not 1 <= count <= (N - protected) // 2:
        raise ValueError(f"cannot merge {count} of {tuple(qkv.shape)} with {heads} heads, {protected} left alone")
    into = torch.empty(B, N, dtype=torch.int32, device=qkv.device)
    block, wide = _sides(N, protected, D)
    # three products of halves instead of one by the cores for 32 bits: quicker, and their operands take twice the room
    precision = "tf32x3" if 2 * _bytes_of(block, wide) <= shared_bytes(qkv.device) else "ieee"
    with torch.cuda.device_of(qkv):
        launched(_match, (B,))(
            qkv, into, N, heads, count, protected, D, wide, block, _MOST_PROTECTED, precision,
            dependent(qkv.device), **options(8 if block > 64 else 4, qkv.device),
        )  # fmt: skip
    return into


def merge(
    x: Tensor, sizes: Tensor | None, into: Tensor, count: int, *, add: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The tokens x (B, N, C), after `add` of the same size, each set of one place as its mean weighted by `sizes`.

    sizes: float32 (B, N), whole numbers: how many patches each token stands for; ones when None. into: as `match` gives
    it. Sums are taken in float32. -> (B, N - count, C), and the sizes (B, N - count).
    """
    B, N, C = x.shape
    if into.shape != (B, N) or not x.is_contiguous() or (add is not None and add.numel() != x.numel()):
        raise ValueError(f"places {tuple(into.shape)} or what is added does not fit tokens {tuple(x.shape)}")
    out, sizes_out = x.new_empty(B, N - count, C), torch.empty(B, N - count, device=x.device)
    block = max(16, power_of_two(N))
    rows, channels = _tile(block, x.dtype.itemsize, shared_bytes(x.device))
    with torch.cuda.device_of(x):
        launched(_merge, (B, triton.cdiv(C, channels)))(
            x, add, sizes, into, out, sizes_out, N, N - count, C, block, rows, channels,
            dependent(x.device), **options(4, x.device),
        )  # fmt: skip
    return out, sizes_out


def _sides(tokens: int, protected: int, head_dim: int) -> tuple[int, int]:
    """Of the two matrices whose rows are compared: rows and columns."""
    return max(16, power_of_two((tokens - protected + 1) // 2)), max(16, power_of_two(head_dim))


def _bytes_of(rows: int, columns: int) -> int:
    """Both in float32."""
    return 2 * 4 * rows * columns


def _tile(block: int, itemsize: int, memory: int) -> tuple[int, int]:
    """The first of _TILES whose operands fit: by what Triton takes for them, at most, on GPUs from a T4 to an H200."""
    fit = (tile for tile in _TILES if itemsize * block * (tile[0] + 2 * tile[1]) + 16 * tile[0] <= memory)
    return next(fit, _TILES[-1])


# one compilation for all numbers of tokens that are cut alike
@triton.jit(do_not_specialize=["N", "count", "protected"])
def _match(
    qkv: tl.tensor,
    into: tl.tensor,
    N: tl.tensor,
    heads: tl.constexpr,
    count: tl.tensor,
    protected: tl.tensor,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    PROTECTED: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    image = tl.program_id(0).to(tl.int64)
    firsts = (N - protected + 1) // 2
    seconds = N - protected - firsts
    place = tl.arange(0, BLOCK)
    key = qkv + image * N * 3 * heads * D + heads * D
    one = _units(key, protected, 2, firsts, heads, D, WIDE, BLOCK)
    other = _units(key, protected + 1, 2, seconds, heads, D, WIDE, BLOCK)
    alike = tl.dot(one, tl.trans(other), input_precision=PRECISION)
    alike = tl.where(place[None, :] < seconds, alike, float("-inf"))
    best, partner = tl.max(alike, axis=1, return_indices=True)
    partner = tl.minimum(partner, seconds - 1)  # whatever comparisons of NaN give
    best = tl.where(place < firsts, best, float("-inf"))
    earlier = (best[None, :] == best[:, None]) & (place[None, :] < place[:, None])
    rank = tl.sum(((best[None, :] > best[:, None]) | earlier).to(tl.int32), axis=1)
    left = protected + firsts - count
    found = tl.where(rank < count, left + partner, protected + rank - count)
    into += image * N
    tl.store(into + protected + 2 * place, found, mask=place < firsts)
    tl.store(into + protected + 1 + 2 * place, left + place, mask=place < seconds)
    alone = tl.arange(0, PROTECTED)
    tl.store(into + alone, alone, mask=alone < protected)


@triton.jit
def _units(
    key: tl.tensor,
    first: tl.tensor,
    step: tl.constexpr,
    count: tl.tensor,
    heads: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Every second token's key, the mean over its heads, scaled to length 1: float32 (BLOCK, WIDE), zeros at the end."""
    token, channel = tl.arange(0, BLOCK), tl.arange(0, WIDE)
    offsets = (first + step * token)[:, None] * (3 * heads * D) + channel[None, :]
    inside = (token < count)[:, None] & (channel < D)[None, :]
    total = tl.zeros((BLOCK, WIDE), tl.float32)
    for head in range(heads):
        total += tl.load(key + head * D + offsets, mask=inside, other=0.0).to(tl.float32)
    mean = total * (1.0 / heads)
    length = tl.sqrt(tl.sum(mean * mean, axis=1))
    return mean / tl.maximum(length, 1e-6)[:, None]


@triton.jit(do_not_specialize=["N", "left"])
def _merge(
    x: tl.tensor,
    add: tl.tensor,
    sizes: tl.tensor,
    into: tl.tensor,
    out: tl.tensor,
    sizes_out: tl.tensor,
    N: tl.tensor,
    left: tl.tensor,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (token < N)[:, None] & (channel < C)[None, :]
    offsets = image * N * C + token[:, None] * C + channel[None, :]
    value = tl.load(x + offsets, mask=inside, other=0.0)
    if add is not None:
        added = tl.load(add + offsets, mask=inside, other=0.0).to(tl.float32)
        value = (value.to(tl.float32) + added).to(x.dtype.element_ty)
    place = tl.load(into + image * N + token, mask=token < N, other=-1)
    if sizes is not None:
        size = tl.load(sizes + image * N + token, mask=token < N, other=0.0)
    else:
        size = (token < N).to(tl.float32)
    for start in range(0, left, ROWS):
        row = start + tl.arange(0, ROWS)
        share = tl.where(place[None, :] == row[:, None], size[None, :], 0.0)
        total = tl.sum(share, axis=1)
        sums = tl.dot(share.to(value.dtype), value, input_precision="tf32x3")
        mean = (sums / tl.maximum(total, 1.0)[:, None]).to(out.dtype.element_ty)
        written = (row < left)[:, None] & (channel < C)[None, :]
        tl.store(out + image * left * C + row[:, None] * C + channel[None, :], mean, mask=written)
        if tl.program_id(1) == 0:
            tl.store(sizes_out + image * left + row, total, mask=row < left)
