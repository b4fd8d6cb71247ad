"""The stages of a block, as the programs of one kernel run them, each over all that the stage before has written.

blocks_at_once[(programs,)](…, EVERY, True, …)      # a whole network; how it is launched says blocks.py
blocks_at_once[(programs,)](…, 1 << 2, False, …)    # only attention: Triton's interpreter cannot wait
"""

from __future__ import annotations

import triton
import triton.language as tl

from petalite.engine.kernels.gelu import gelu_half
from petalite.engine.kernels.heads import attend, places_in_pieces, places_of, queries_of, read, read_pieces, write
from petalite.engine.kernels.quantize import encode

#: The depth that a product multiplies at a time.
DEPTH = 128
_DEPTH = tl.constexpr(DEPTH)
#: Stages of a block, and a bit for each of them and for the end.
COUNT = 7
EVERY = (1 << COUNT + 1) - 1
#: Rows of a norm that a program takes.
NORMED = 2
_NORMED = tl.constexpr(NORMED)
#: What `Table` in blocks.py writes of a layer: norms' weight and bias, then each product's weight, bias, scale, stride.
_ADDRESSES = tl.constexpr(20)
_NORM1, _NORM2 = tl.constexpr(0), tl.constexpr(2)
_QKV, _PROJ, _FC1, _FC2 = tl.constexpr(4), tl.constexpr(8), tl.constexpr(12), tl.constexpr(16)
#: The steps of a layer: of the inputs of qkv, of queries, keys and values, of the inputs of proj, fc1 and fc2.
_STEPS = tl.constexpr(5)
#: What the end of a product does: writes codes, or codes of GELU, or adds to what is there, or writes parts of sums.
_CODES, _GELU, _ADDED, _PARTS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit(do_not_specialize=["first", "last", "programs", "B"])
def blocks_at_once(
    x: tl.tensor,
    normed: tl.tensor,
    qkv: tl.tensor,
    attended: tl.tensor,
    hidden: tl.tensor,
    parts: tl.tensor,
    addresses: tl.tensor,
    steps: tl.tensor,
    counter: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    programs: tl.tensor,
    B: tl.tensor,
    N: tl.tensor,
    eps: tl.tensor,
    factor: tl.tensor,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    HIDDEN: tl.constexpr,
    HIGH: tl.constexpr,
    TALL: tl.constexpr,
    WIDE_QKV: tl.constexpr,
    WIDE_PROJ: tl.constexpr,
    WIDE_FC1: tl.constexpr,
    WIDE_FC2: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
    WAITS: tl.constexpr,
) -> None:
    """The layers from `first` to `last`, that one excluded. `counter` is zero before and after.

    A program has at most one tile, one block of queries and two rows in a stage. Where they lie is worked out before it
    waits for the others: after that, every instruction delays all of them.
    """
    M = B * N
    met = 0
    rows = _rows(x, parts, normed, C, BLOCK, WAITS)
    gains = _of_norm(addresses + first * _ADDRESSES + _NORM1, C, BLOCK)
    step = tl.load(steps + first * _STEPS)
    for layer in range(first, last):
        here, worth = addresses + layer * _ADDRESSES, steps + layer * _STEPS
        head_step, proj_step = tl.load(worth + 1), tl.load(worth + 2)
        fc1_step, fc2_step = tl.load(worth + 3), tl.load(worth + 4)
        if STAGES & 1:
            added = tl.minimum(layer, 1) * M  # nothing was multiplied before the first layer
            _norm(rows, gains, step, M, eps, added, C, BLOCK, PARTS)
        _arrive(counter, WAITS)
        tile = _tile(normed, here + _QKV, 3 * C, C, HIGH, TALL, WIDE_QKV, 1, WAITS)
        met = _wait(counter, met, programs, WAITS)
        if STAGES & 2:
            _product(tile, head_step, qkv, M, 3 * C, C, HIGH, TALL, WIDE_QKV, 1, _CODES)
        _arrive(counter, WAITS)
        head = _head(qkv, N, HEADS, D, HIGH, FIRST, SECOND, THIRD, WAITS)
        met = _wait(counter, met, programs, WAITS)
        if STAGES & 4:
            _attention(head, attended, head_step, proj_step, B, N, factor, HEADS, D, HIGH, FIRST, SECOND, THIRD)
        _arrive(counter, WAITS)
        tile = _tile(attended, here + _PROJ, C, C, HIGH, TALL, WIDE_PROJ, 1, WAITS)
        met = _wait(counter, met, programs, WAITS)
        if STAGES & 8:
            _product(tile, 1.0, x, M, C, C, HIGH, TALL, WIDE_PROJ, 1, _ADDED)
        _arrive(counter, WAITS)
        rows = _rows(x, parts, normed, C, BLOCK, WAITS)
        gains = _of_norm(here + _NORM2, C, BLOCK)
        met = _wait(counter, met, programs, WAITS)
        if STAGES & 16:
            _norm(rows, gains, fc1_step, M, eps, 0, C, BLOCK, PARTS)
        _arrive(counter, WAITS)
        tile = _tile(normed, here + _FC1, HIDDEN, C, HIGH, TALL, WIDE_FC1, 1, WAITS)
        met = _wait(counter, met, programs, WAITS)
        if STAGES & 32:
            _product(tile, fc2_step, hidden, M, HIDDEN, C, HIGH, TALL, WIDE_FC1, 1, _GELU)
        _arrive(counter, WAITS)
        tile = _tile(hidden, here + _FC2, C, HIDDEN, HIGH, TALL, WIDE_FC2, PARTS, WAITS)
        met = _wait(counter, met, programs, WAITS)
        if STAGES & 64:
            _product(tile, 1.0, parts, M, C, HIDDEN, HIGH, TALL, WIDE_FC2, PARTS, _PARTS)
        _arrive(counter, WAITS)
        following = tl.minimum(layer + 1, last - 1)
        rows = _rows(x, parts, normed, C, BLOCK, WAITS)
        gains = _of_norm(addresses + following * _ADDRESSES + _NORM1, C, BLOCK)
        step = tl.load(steps + following * _STEPS)
        met = _wait(counter, met, programs, WAITS)
    if STAGES & 128:
        _add(rows, M, C, BLOCK, PARTS)
    if WAITS:
        _leave(counter, met, programs)


@triton.jit
def _rows(
    x: tl.tensor, parts: tl.tensor, normed: tl.tensor, C: tl.constexpr, BLOCK: tl.constexpr, WAITS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """This program's rows in a norm: their numbers, and where they lie in the stream, the last product and the codes."""
    row = _own(WAITS) * _NORMED + tl.arange(0, _NORMED)
    places = row[:, None] * C + tl.max_contiguous(tl.arange(0, BLOCK), 8)[None, :]
    return row, x + places, parts + places, normed + places


@triton.jit
def _of_norm(here: tl.tensor, C: tl.constexpr, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """A norm's weight and bias, for each of this program's rows."""
    weight = tl.load(here).to(tl.pointer_type(tl.float32))
    bias = tl.load(here + 1).to(tl.pointer_type(tl.float32))
    column = tl.max_contiguous(tl.arange(0, BLOCK), 8)[None, :]
    own = tl.broadcast_to(column, (_NORMED, BLOCK))
    return tl.load(weight + own, mask=own < C, other=0.0), tl.load(bias + own, mask=own < C, other=0.0)


@triton.jit
def _norm(
    rows: tl.tuple,
    gains: tl.tuple,
    step: tl.tensor,
    M: tl.tensor,
    eps: tl.tensor,
    added: tl.tensor,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """Add the product before to the first `added` rows of the stream, and write the norm's codes."""
    row, x, parts, normed = rows
    gain, shift = gains
    within = tl.arange(0, BLOCK)[None, :] < C
    inside, more = (row < M)[:, None] & within, (row < added)[:, None] & within
    value = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    kept = (value + _sum(parts, more, M * C, PARTS)).to(x.dtype.element_ty)
    tl.store(x, kept, mask=more)
    value = kept.to(tl.float32)
    mean = tl.sum(value, axis=1) * (1.0 / C)
    centred = tl.where(within, value - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) * (1.0 / C)
    result = centred * tl.rsqrt(variance + eps)[:, None] * gain + shift
    tl.store(normed, encode(result, 1.0 / step, normed.dtype.element_ty), mask=inside)


@triton.jit
def _add(rows: tl.tuple, M: tl.tensor, C: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr) -> None:
    """Add the last product to the stream."""
    row, x, parts, _ = rows
    inside = (row < M)[:, None] & (tl.arange(0, BLOCK)[None, :] < C)
    value = tl.load(x, mask=inside, other=0.0).to(tl.float32) + _sum(parts, inside, M * C, PARTS)
    tl.store(x, value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _sum(parts: tl.tensor, inside: tl.tensor, size: tl.tensor, PARTS: tl.constexpr) -> tl.tensor:
    """A product of which the parts lie `size` values apart, added up in their order."""
    total = tl.load(parts, mask=inside, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + part * size, mask=inside, other=0.0)
    return total


@triton.jit
def _head(
    qkv: tl.tensor,
    N: tl.tensor,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    HIGH: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
    WAITS: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """This program's head and first query, and where the queries, keys and values lie that it needs."""
    high = tl.cdiv(N, HIGH)
    place, row = _own(WAITS) // high, _own(WAITS) % high * HIGH
    stride: tl.constexpr = 3 * HEADS * D
    queries, image = queries_of(qkv, place, N, HEADS, D)
    q = places_of(queries, row, stride, HIGH, D)
    keys = places_in_pieces(queries + HEADS * D, stride, D, FIRST, SECOND, THIRD)
    values = places_in_pieces(queries + 2 * HEADS * D, stride, D, FIRST, SECOND, THIRD)
    return place, image, row, q, keys, values


@triton.jit
def _attention(
    head: tl.tuple,
    attended: tl.tensor,
    one: tl.tensor,
    step: tl.tensor,
    B: tl.tensor,
    N: tl.tensor,
    factor: tl.tensor,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    HIGH: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
) -> None:
    """A block of queries of one head; programs beyond the last head read and write nothing."""
    place, image, row, q, keys, values = head
    tokens = tl.where(place < B * HEADS, N, 0)
    q = read(q, row, tokens, HIGH, D, D)
    k1, k2, k3 = read_pieces(keys, tokens, D, D, FIRST, SECOND, THIRD)
    v1, v2, v3 = read_pieces(values, tokens, D, D, FIRST, SECOND, THIRD)
    shares = factor * one * one
    sums, total = attend(q, k1, k2, k3, v1, v2, v3, None, image, shares, N, FIRST, SECOND, THIRD)
    write(attended, one, step, sums, total, image, place % HEADS, row, tokens, HEADS, HIGH, D, D)


@triton.jit
def _own(WAITS: tl.constexpr) -> tl.tensor:
    """The number of this program, asked for anew: what follows from it is not kept from layer to layer in registers."""
    if WAITS:
        return tl.inline_asm_elementwise("mov.u32 $0, %ctaid.x;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)
    else:
        return tl.program_id(0)


@triton.jit
def _tile(
    a: tl.tensor,
    here: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    HIGH: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    WAITS: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """This program's tile of a product: its part of the sums (PARTS: it has none), its rows and columns, where the first
    pieces of both operands lie, and bias and scale of the columns."""
    weight = tl.load(here).to(tl.pointer_type(tl.float8e4nv))
    bias = tl.load(here + 1).to(tl.pointer_type(tl.float32))
    scale = tl.load(here + 2).to(tl.pointer_type(tl.float32))
    wide: tl.constexpr = N // WIDE
    tile = _own(WAITS)
    # neighbours have the same columns: the weights, which come from afar, are then asked for in one place
    first = tile % TALL * HIGH
    column = tile // TALL % wide * WIDE + tl.arange(0, WIDE)
    part = tile // (TALL * wide)
    row = first + tl.arange(0, HIGH)
    depth = part * (K // PARTS) + tl.arange(0, _DEPTH)[None, :]
    left = a + (row[:, None] * K + depth)
    right = tl.multiple_of(weight + (column[:, None] * K + depth), [16, 16])
    shift, scaling = tl.load(bias + column), tl.load(scale + column * tl.load(here + 3).to(tl.int32))
    return part, row, column, left, right, shift, scaling


@triton.jit
def _product(
    tile: tl.tuple,
    step: tl.tensor,
    out: tl.tensor,
    M: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    HIGH: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    END: tl.constexpr,
) -> None:
    """A tile of (M, K) · (N, K)ᵀ, if this program has one, written as END says; step: of the codes."""
    part, row, column, left, right, shift, scaling = tile
    inside = (row < tl.where(part < PARTS, M, 0))[:, None]
    some = (column < tl.where(part < PARTS, N, 0))[:, None]
    places = row[:, None] * N + column[None, :]
    if END == _ADDED:
        kept = tl.load(out + places, mask=inside, other=0.0)  # here, where nothing waits for it
    total = tl.zeros((HIGH, WIDE), tl.float32)
    for at in range(K // _DEPTH // PARTS):
        rows = tl.load(left + at * _DEPTH, mask=inside, other=0.0)
        columns = tl.load(right + at * _DEPTH, mask=some, other=0.0)
        total = tl.dot(rows, columns.T, total)
    value = total * scaling[None, :]
    if END == _PARTS:
        value += tl.where(part == 0, shift, 0.0)[None, :]
        tl.store(out + part * M * N + places, value, mask=inside)
    else:
        value += shift[None, :]
        if END == _ADDED:
            tl.store(out + places, (kept.to(tl.float32) + value).to(out.dtype.element_ty), mask=inside)
        else:
            if END == _GELU:
                value = gelu_half(value)
            tl.store(out + places, encode(value, 1.0 / step, out.dtype.element_ty), mask=inside)


@triton.jit
def _arrive(counter: tl.tensor, WAITS: tl.constexpr) -> None:
    """Say that this program has written what others wait for."""
    if WAITS:
        tl.debug_barrier()  # one thread counts for all of them
        tl.inline_asm_elementwise(
            """{
            .reg .pred rest;
            .reg .u32 thread;
            mov.u32 thread, %tid.x;
            setp.ne.u32 rest, thread, 0;
            @!rest red.release.gpu.global.add.s32 [$1], 1;
            mov.u32 $0, 0;
            }""", "=r,l", [counter], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _wait(counter: tl.tensor, met: tl.tensor, programs: tl.tensor, WAITS: tl.constexpr) -> tl.tensor:
    """Wait until all programs have said so once more than `met` counts: what they had written may be read behind."""
    met += programs
    if WAITS:
        # one thread asks: 132 of them are enough for one address
        tl.inline_asm_elementwise(
            """{
            .reg .pred rest;
            .reg .pred early;
            .reg .u32 thread;
            .reg .s32 count;
            mov.u32 thread, %tid.x;
            setp.ne.u32 rest, thread, 0;
            @rest bra DONE;
            AGAIN:
            ld.acquire.gpu.global.s32 count, [$1];
            setp.lt.s32 early, count, $2;
            @early bra AGAIN;
            DONE:
            mov.u32 $0, 0;
            }""", "=r,l,r", [counter, met], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
        tl.debug_barrier()
    return met


@triton.jit
def _leave(counter: tl.tensor, met: tl.tensor, programs: tl.tensor) -> None:
    """The last one sets the counter back: all others have left the last meeting."""
    if tl.atomic_add(counter, 1, sem="relaxed") == met + programs - 1:
        tl.store(counter, 0)
