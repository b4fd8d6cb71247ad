"""Attention of one head, piece by piece, as kernels call it: where queries, keys and values lie, softmax(Q Kᵀ) V, the end.

queries, image = queries_of(qkv, place, N, heads, D)            # of the head at this place among all heads of all images
q = rows_of(queries, row, N, 3 * heads * D, ROWS, D, WIDE)
places = places_in_pieces(queries + heads * D, 3 * heads * D, WIDE, 128, 64, 16)        # of 208 keys
k1, k2, k3 = read_pieces(places, N, D, WIDE, 128, 64, 16)
sums, total = attend(q, k1, k2, k3, v1, v2, v3, None, image, factor, N, 128, 64, 16)
write(out, one, step, sums, total, image, place % heads, row, N, heads, ROWS, D, WIDE)
"""

from __future__ import annotations

import triton
import triton.language as tl

from petalite.engine.kernels.quantize import encode


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
def places_in_pieces(
    base: tl.tensor,
    stride: tl.tensor,
    WIDE: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Where all keys or all values of a head lie, in up to three pieces (0: none)."""
    first = places_of(base, 0, stride, FIRST, WIDE)
    second = places_of(base, FIRST, stride, SECOND, WIDE) if SECOND else first
    third = places_of(base, FIRST + SECOND, stride, THIRD, WIDE) if THIRD else first
    return first, second, third


@triton.jit
def read_pieces(
    places: tl.tuple,
    N: tl.tensor,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """All keys or all values of a head; what stands for a piece of none is not read."""
    first = read(places[0], 0, N, FIRST, D, WIDE)
    second = read(places[1], FIRST, N, SECOND, D, WIDE) if SECOND else first
    third = read(places[2], FIRST + SECOND, N, THIRD, D, WIDE) if THIRD else first
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
def add_keys(
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


@triton.jit
def plain(values: tl.tensor) -> tl.tensor:
    """Values as the softmax's shares multiply them: codes as float16, which holds each of them exactly."""
    if values.dtype == tl.float8e4nv:
        return values.to(tl.float16)
    else:
        return values


@triton.jit
def _weighted(shares: tl.tensor, values: tl.tensor, sums: tl.tensor) -> tl.tensor:
    """The values' sums by these shares, added to `sums` unless that is None."""
    values = plain(values)
    return tl.dot(shares.to(values.dtype), values, sums, input_precision="ieee")


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
