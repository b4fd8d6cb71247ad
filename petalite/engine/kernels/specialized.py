"""The same product for Hopper GPUs, its warps specialized: some load, others multiply. For products of many rows.

    product(codes, weight, …, config=Config(128, 256, specialized=True, lead=2))      # how it is reached

A program stays and takes tile after tile. One warp has the copy engine fetch operands into a ring of buffers, as far
ahead as there is room. Two groups of four warps multiply, each the upper or the lower half of a tile's rows. The second
one is kept `lead` depths behind, so that they reach the end of their tiles in turn: while one is busy with scales, GELU
and rounding, which take nearly half as long as the sums, the other has the tensor cores for itself. Plain Triton leaves
them idle for that time, since all its warps do the same at once.

Written in Gluon, Triton's lower level (`triton.experimental`), where layouts, barriers and roles are explicit. The idea
of groups that multiply in turn is CUTLASS's (its cooperative and ping-pong kernels).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from petalite.engine.kernels.tiles import Config, tiles

# Triton 3.7 renamed them
_fetch = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_put = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global

_GLUON = {
    torch.float8_e4m3fn: gl.float8e4nv,
    torch.int8: gl.int8,
    torch.bfloat16: gl.bfloat16,
    torch.float16: gl.float16,
    torch.float32: gl.float32,
}
#: Registers of a thread: 65,536 of a multiprocessor are shared by two groups of 128 threads that multiply, and one of
#: which a single warp works.
_REGISTERS_MULTIPLYING, _REGISTERS_LOADING = 240, 24
#: Bytes of a row of the output that are written at once.
_PIECE = 128


def launch(
    a: Tensor,
    w: Tensor,
    out: Tensor,
    epilogue: tuple[Any, ...],
    function: Any,
    by_row: bool,
    config: Config,
    multiprocessors: int,
) -> None:
    """Compute `out`; arguments as `product` has checked them. epilogue: residual, bias, a_scale, w_scale, out_scale.

    Raises ValueError for a config that is cut otherwise, and for an output whose rows do not start at 16 bytes.
    """
    (M, K), N = a.shape, len(w)
    if config.rows != 128 or config.columns not in (128, 256) or config.depth != 128:
        raise ValueError(f"a specialized product has tiles of 128x128 or 128x256 and depth 128, not {config}")
    if config.exact:
        raise ValueError("a specialized product has no exact sums")
    if N * out.dtype.itemsize % 16:
        raise ValueError(f"rows of {N} values of {out.dtype} do not start at multiples of 16 bytes")
    depth = config.depth // a.dtype.itemsize
    # 64 columns of 16 bits, 64 of 8 bits (128 would take what the fourth stage needs), 32 of 32 bits
    piece = min(64, _PIECE // out.dtype.itemsize)
    steps = -(-K // depth)
    lead = min(config.lead, steps, config.stages - 1)
    if steps + lead <= config.stages:
        lead = 0  # a barrier tells odd tiles from even ones only: the first group must not get two ahead
    _product[(min(tiles(config, M, N), multiprocessors),)](
        _described(a, 64, depth),
        _described(w, config.columns, depth),
        _described(out, 64, piece),
        *epilogue, M, N, K, min(tiles(config, M, N), multiprocessors), config.columns, depth, config.stages,
        config.band, piece, lead, gl.int32 if a.dtype == torch.int8 else gl.float32,
        None if function is None else _gluon(function), by_row,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


@functools.cache
def _gluon(function: Any) -> Any:
    """A Triton function of float32 values as Gluon calls it: the same text."""
    return gluon.jit(function.fn)


def _described(tensor: Tensor, rows: int, columns: int) -> Any:
    """How the copy engine finds tiles of this size in a matrix, and lays them out in shared memory."""
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], _GLUON[tensor.dtype])
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [rows, columns], layout)


# one compilation for all numbers of rows
@gluon.jit(do_not_specialize=["M", "programs"])
def _product(
    a: gl.tensor,
    w: gl.tensor,
    out: gl.tensor,
    residual: gl.tensor,
    bias: gl.tensor,
    a_scale: gl.tensor,
    w_scale: gl.tensor,
    out_scale: gl.tensor,
    M: gl.tensor,
    N: gl.tensor,
    K: gl.tensor,
    programs: gl.tensor,
    COLUMNS: gl.constexpr,
    DEPTH: gl.constexpr,
    STAGES: gl.constexpr,
    BAND: gl.constexpr,
    PIECE: gl.constexpr,
    LEAD: gl.constexpr,
    SUMS: gl.constexpr,
    FUNCTION: gl.constexpr,
    BY_ROW: gl.constexpr,
) -> None:
    high = gl.cdiv(M, 128)
    wide = gl.cdiv(N, COLUMNS)
    steps = gl.cdiv(K, DEPTH)
    upper = gl.allocate_shared_memory(a.dtype, [STAGES, 64, DEPTH], a.layout)
    lower = gl.allocate_shared_memory(a.dtype, [STAGES, 64, DEPTH], a.layout)
    right = gl.allocate_shared_memory(w.dtype, [STAGES, COLUMNS, DEPTH], w.layout)
    upper_out = gl.allocate_shared_memory(out.dtype, [2, 64, PIECE], out.layout)
    lower_out = gl.allocate_shared_memory(out.dtype, [2, 64, PIECE], out.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    ahead = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    mbarrier.init(ahead, count=1)
    ends = (residual, bias, a_scale, w_scale, out_scale)
    gl.warp_specialize(
        [
            (
                _multiply,
                (upper, right, full, empty, ahead, out, upper_out, ends, M, N, high, wide, steps, programs,
                 0, STAGES, BAND, PIECE, LEAD, SUMS, FUNCTION, BY_ROW),
            ),
            (
                _multiply,
                (lower, right, full, empty, ahead, out, lower_out, ends, M, N, high, wide, steps, programs,
                 1, STAGES, BAND, PIECE, LEAD, SUMS, FUNCTION, BY_ROW),
            ),
            (_load, (a, w, upper, lower, right, full, empty, high, wide, steps, programs, STAGES, BAND)),
        ],
        [4, 1],
        [_MULTIPLYING, _LOADING],
    )  # fmt: skip


_MULTIPLYING = gl.constexpr(_REGISTERS_MULTIPLYING)
_LOADING = gl.constexpr(_REGISTERS_LOADING)


@gluon.jit
def _place(
    tile: gl.tensor,
    high: gl.tensor,
    wide: gl.tensor,
    BAND: gl.constexpr,
) -> tuple[gl.tensor, gl.tensor]:
    """Row and column of a tile among high x wide: bands of BAND rows, each from left to right."""
    size = BAND * wide
    first = tile // size * BAND
    rows = gl.minimum(high - first, BAND)
    return first + tile % size % rows, tile % size // rows


@gluon.jit
def _load(
    a: gl.tensor,
    w: gl.tensor,
    upper: gl.tensor,
    lower: gl.tensor,
    right: gl.tensor,
    full: gl.tensor,
    empty: gl.tensor,
    high: gl.tensor,
    wide: gl.tensor,
    steps: gl.tensor,
    programs: gl.tensor,
    STAGES: gl.constexpr,
    BAND: gl.constexpr,
) -> None:
    """Fill the ring of buffers, in the order in which the tiles are multiplied."""
    COLUMNS: gl.constexpr = right.shape[1]
    DEPTH: gl.constexpr = right.shape[2]
    BYTES: gl.constexpr = (128 + COLUMNS) * DEPTH * (a.dtype.primitive_bitwidth // 8)
    stage = 0
    parity = 1  # the buffers are empty as if they had been used before
    for tile in range(gl.program_id(0), high * wide, programs):
        row, column = _place(tile, high, wide, BAND)
        for step in range(steps):
            mbarrier.wait(empty.index(stage), parity)
            mbarrier.expect(full.index(stage), BYTES)
            _fetch(a, [row * 128, step * DEPTH], full.index(stage), upper.index(stage))
            _fetch(w, [column * COLUMNS, step * DEPTH], full.index(stage), right.index(stage))
            _fetch(a, [row * 128 + 64, step * DEPTH], full.index(stage), lower.index(stage))
            stage += 1
            if stage == STAGES:
                stage = 0
                parity ^= 1


@gluon.jit
def _multiply(
    left: gl.tensor,
    right: gl.tensor,
    full: gl.tensor,
    empty: gl.tensor,
    ahead: gl.tensor,
    out: gl.tensor,
    staged: gl.tensor,
    ends: gl.tensor,
    M: gl.tensor,
    N: gl.tensor,
    high: gl.tensor,
    wide: gl.tensor,
    steps: gl.tensor,
    programs: gl.tensor,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    BAND: gl.constexpr,
    PIECE: gl.constexpr,
    LEAD: gl.constexpr,
    SUMS: gl.constexpr,
    FUNCTION: gl.constexpr,
    BY_ROW: gl.constexpr,
) -> None:
    """Multiply and finish 64 rows of each tile: the upper (GROUP 0) or the lower ones."""
    COLUMNS: gl.constexpr = right.shape[1]
    BITS: gl.constexpr = left.dtype.primitive_bitwidth
    # one instruction adds 64 x WIDE products over 32 bytes of depth; integers have none for 256
    WIDE: gl.constexpr = 128 if gl.int32 == SUMS else COLUMNS
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 256 // BITS])
    stage = 0
    parity = 0
    turn = 0
    for tile in range(gl.program_id(0), high * wide, programs):
        row, column = _place(tile, high, wide, BAND)
        total = gl.zeros([64, COLUMNS], SUMS, layout)
        if LEAD > 0 and GROUP == 1:
            mbarrier.wait(ahead, turn)
            turn ^= 1
        for step in range(steps):
            mbarrier.wait(full.index(stage), parity)
            upright = right.index(stage).permute((1, 0))
            total = warpgroup_mma(left.index(stage), upright, total, is_async=True)
            # The multiplication before this one has ended: its buffers are free. Their place is computed, not kept:
            # Triton does not carry a variable through a loop that begins as a copy of another (`before = stage`).
            total = warpgroup_mma_wait(1, deps=(total,))
            mbarrier.arrive(empty.index((stage + STAGES - 1) % STAGES), pred=step > 0)
            if LEAD > 0 and GROUP == 0:
                mbarrier.arrive(ahead, pred=step == LEAD - 1)
            stage += 1
            if stage == STAGES:
                stage = 0
                parity ^= 1
        total = warpgroup_mma_wait(0, deps=(total,))
        mbarrier.arrive(empty.index((stage + STAGES - 1) % STAGES))
        _finish(total, out, staged, ends, M, N, row * 128 + GROUP * 64, column * COLUMNS, 0, PIECE, FUNCTION, BY_ROW)
    tma.store_wait(0)


@gluon.jit
def _finish(
    total: gl.tensor,
    out: gl.tensor,
    staged: gl.tensor,
    ends: gl.tensor,
    M: gl.tensor,
    N: gl.tensor,
    row: gl.tensor,
    column: gl.tensor,
    turn: gl.constexpr,
    PIECE: gl.constexpr,
    FUNCTION: gl.constexpr,
    BY_ROW: gl.constexpr,
) -> None:
    """What follows the sums of 64 rows, PIECE columns at a time, through two buffers in turn."""
    COLUMNS: gl.constexpr = total.shape[1]
    if COLUMNS > PIECE:
        # halves of the columns: each thread has numbers of both, so nothing moves between threads
        halves = total.reshape([64, 2, COLUMNS // 2]).permute(0, 2, 1).split()
        HALF: gl.constexpr = COLUMNS // 2
        _finish(halves[0], out, staged, ends, M, N, row, column, turn, PIECE, FUNCTION, BY_ROW)
        _finish(halves[1], out, staged, ends, M, N, row, column + HALF, turn + HALF // PIECE, PIECE, FUNCTION, BY_ROW)
    else:
        residual, bias, a_scale, w_scale, out_scale = ends
        layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PIECE, 16])
        rows = row + gl.arange(0, 64, gl.SliceLayout(1, layout))
        columns = column + gl.arange(0, PIECE, gl.SliceLayout(0, layout))
        value = gl.convert_layout(total, layout, assert_trivial=True).to(gl.float32)
        factor = gl.full([PIECE], 1.0, gl.float32, gl.SliceLayout(0, layout))
        if BY_ROW:
            value = value * gl.load(a_scale + rows, mask=rows < M, other=0.0)[:, None]
        if w_scale is not None:
            factor = gl.load(w_scale + columns, mask=columns < N, other=0.0)
        if a_scale is not None and not BY_ROW:
            factor = factor * gl.load(a_scale)
        value = value * factor[None, :]
        if bias is not None:
            value = value + gl.load(bias + columns, mask=columns < N, other=0.0).to(gl.float32)[None, :]
        if FUNCTION is not None:
            value = FUNCTION(value)
        if residual is not None:
            inside = (rows < M)[:, None] & (columns < N)[None, :]
            places = (rows - row)[:, None] * N + (columns - column)[None, :]
            here = residual + (row.to(gl.int64) * N + column)
            value = value + gl.load(here + places, mask=inside, other=0.0).to(gl.float32)
        if out_scale is not None:
            value = value * (1.0 / gl.load(out_scale))
        if out.dtype == gl.int8:  # as `quantize.encode`
            shifted = gl.minimum(gl.maximum(value + 12582912.0, 12582912.0 - 127), 12582912.0 + 127)
            written = shifted.to(gl.int32, bitcast=True).to(gl.int8)
        else:
            written = value.to(out.dtype)
        tma.store_wait(1)  # the buffer's last contents have left
        staged.index(turn % 2).store(written)
        fence_async_shared()
        _put(out, [row, column], staged.index(turn % 2))
