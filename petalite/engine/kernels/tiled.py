"""The product in plain Triton: a program for each tile, or for each part of its sum, or one that takes tile after tile.

    product(codes, weight, …, config=Config(64, 64, split=4))      # how it is reached

Where the output has too few tiles to fill the GPU, the sum of each is divided among several programs. They leave their
parts in memory and count themselves; the one that counts last adds the parts up in their order and finishes the tile, so
the result does not depend on who was last, and no program ever waits for another.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from petalite.engine.kernels.launching import launched
from petalite.engine.kernels.quantize import encode
from petalite.engine.kernels.tiles import Config, tiles

_TRITON = {
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.int8: tl.int8,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
}


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
    """Compute `out`; arguments as `product` has checked them. epilogue: residual, bias, a_scale, w_scale, out_scale."""
    (M, K), N = a.shape, len(w)
    sums = tl.int32 if a.dtype == torch.int8 else tl.float32
    depth = config.depth // a.dtype.itemsize
    count = tiles(config, M, N)
    partials = arrivals = None
    if config.split > 1:
        size = count * config.split * config.rows * config.columns
        partials = torch.empty(size, dtype=torch.int32 if sums == tl.int32 else torch.float32, device=a.device)
        arrivals = counters(a.device).take(count)
    # the copy engine, from Hopper on, writes rows that start at multiples of 16 bytes
    hopper = a.device.type != "cuda" or torch.cuda.get_device_capability(a.device) >= (9, 0)
    described = hopper and N * out.dtype.itemsize % 16 == 0
    dependent = config.dependent and a.device.type == "cuda"
    programs = count * config.split
    if config.resident:
        programs = min(count, config.resident * multiprocessors)
    launched(_product, (programs,))(
        _described(a, config.rows, depth) if config.engine else a,
        _described(w, config.columns, depth) if config.engine else w,
        w if dependent else None,
        _described(out, config.rows, config.columns // config.pieces) if described else out,
        *epilogue, partials, arrivals, M, N, K, programs, config.rows, config.columns, depth,
        1 if config.resident else config.split, config.band, config.pieces, sums, _TRITON[out.dtype], function,
        BY_ROW=by_row, RESIDENT=config.resident > 0, ENGINE=config.engine, DESCRIBED=described,
        DEPENDENT=dependent,
        num_warps=config.warps, num_stages=config.stages, enable_fp_fusion=True,
        **({"launch_pdl": True} if dependent else {}),
    )  # fmt: skip


# one compilation for all numbers of rows
@triton.jit(do_not_specialize=["M", "programs"])
def _product(
    a: tl.tensor,
    w: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    residual: tl.tensor,
    bias: tl.tensor,
    a_scale: tl.tensor,
    w_scale: tl.tensor,
    out_scale: tl.tensor,
    partials: tl.tensor,
    arrivals: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    programs: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLIT: tl.constexpr,
    BAND: tl.constexpr,
    PIECES: tl.constexpr,
    SUMS: tl.constexpr,
    OUT: tl.constexpr,
    FUNCTION: tl.constexpr,
    BY_ROW: tl.constexpr,
    RESIDENT: tl.constexpr,
    ENGINE: tl.constexpr,
    DESCRIBED: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    high = tl.cdiv(M, ROWS)
    wide = tl.cdiv(N, COLUMNS)
    steps = tl.cdiv(K, DEPTH)
    if DEPENDENT:
        gdc_launch_dependents()
    if RESIDENT:
        if DEPENDENT:
            gdc_wait()
        # Flattened with the loop over depth, so that loads run ahead into the next tile while this one is finished.
        # The end of a tile counts for itself: Triton's pipeliner takes no counter that both ends of the loop use.
        finished = tl.program_id(0) - programs
        for tile in tl.range(tl.program_id(0), high * wide, programs, flatten=True):
            row, column = _place(tile, high, wide, BAND)
            total = _sum(a, w, row * ROWS, column * COLUMNS, 0, steps, M, N, K, ROWS, COLUMNS, DEPTH, SUMS, ENGINE)
            finished += programs
            row, column = _place(finished, high, wide, BAND)
            _finish(
                total, out, residual, bias, a_scale, w_scale, out_scale, M, N, row * ROWS, column * COLUMNS,
                ROWS, COLUMNS, PIECES, OUT, FUNCTION, BY_ROW, DESCRIBED,
            )  # fmt: skip
    else:
        part = tl.program_id(0) % SPLIT
        tile = tl.program_id(0) // SPLIT
        row, column = _place(tile, high, wide, BAND)
        row *= ROWS
        column *= COLUMNS
        share = tl.cdiv(steps, SPLIT)
        first = part * share
        last = tl.minimum(first + share, steps)
        if DEPENDENT:
            _prefetch(weights, column, first, last, N, K, COLUMNS, DEPTH)
            gdc_wait()
        total = _sum(a, w, row, column, first, last, M, N, K, ROWS, COLUMNS, DEPTH, SUMS, ENGINE)
        if SPLIT == 1:
            _finish(
                total, out, residual, bias, a_scale, w_scale, out_scale, M, N, row, column,
                ROWS, COLUMNS, PIECES, OUT, FUNCTION, BY_ROW, DESCRIBED,
            )  # fmt: skip
        else:
            SIZE: tl.constexpr = ROWS * COLUMNS
            parts = partials + tile * (SPLIT * SIZE)
            place = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
            tl.store(parts + part * SIZE + place, total)
            tl.debug_barrier()  # one thread counts for all of them
            if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == SPLIT - 1:
                # in the order of the parts, whoever came last: the same bits each time
                total = tl.load(parts + place, cache_modifier=".cg")
                for other in tl.static_range(1, SPLIT):
                    total += tl.load(parts + other * SIZE + place, cache_modifier=".cg")
                tl.store(arrivals + tile, 0)
                _finish(
                    total, out, residual, bias, a_scale, w_scale, out_scale, M, N, row, column,
                    ROWS, COLUMNS, PIECES, OUT, FUNCTION, BY_ROW, DESCRIBED,
                )  # fmt: skip


@triton.jit
def _place(tile: tl.tensor, high: tl.tensor, wide: tl.tensor, BAND: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Row and column of a tile among high x wide: bands of BAND rows, each from left to right."""
    size = BAND * wide
    first = tile // size * BAND
    rows = tl.minimum(high - first, BAND)
    return first + tile % size % rows, tile % size // rows


@triton.jit
def _sum(
    a: tl.tensor,
    w: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SUMS: tl.constexpr,
    ENGINE: tl.constexpr,
) -> tl.tensor:
    """The sums of one tile over the depths from `first` to `last`; operands are zero beyond the edges."""
    total = tl.zeros((ROWS, COLUMNS), SUMS)
    for step in range(first, last):
        if ENGINE:
            left = a.load([row, step * DEPTH])
            right = w.load([column, step * DEPTH])
        else:
            left = _piece(a, row, step * DEPTH, M, K, ROWS, DEPTH)
            right = _piece(w, column, step * DEPTH, N, K, COLUMNS, DEPTH)
        total = tl.dot(left, right.T, total, out_dtype=SUMS)
    return total


@triton.jit
def _piece(
    matrix: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tl.tensor:
    """A tile of a matrix (height, width), loaded by the threads themselves."""
    rows = row + tl.arange(0, ROWS)
    columns = column + tl.arange(0, COLUMNS)
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    return tl.load(matrix + rows.to(tl.int64)[:, None] * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _finish(
    total: tl.tensor,
    out: tl.tensor,
    residual: tl.tensor,
    bias: tl.tensor,
    a_scale: tl.tensor,
    w_scale: tl.tensor,
    out_scale: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIECES: tl.constexpr,
    OUT: tl.constexpr,
    FUNCTION: tl.constexpr,
    BY_ROW: tl.constexpr,
    DESCRIBED: tl.constexpr,
) -> None:
    """What follows the sums of one tile, written in PIECES."""
    if PIECES > 1:
        # halves of the columns: each thread has numbers of both, so nothing moves between threads
        halves = tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        _finish(
            left, out, residual, bias, a_scale, w_scale, out_scale, M, N, row, column,
            ROWS, COLUMNS // 2, PIECES // 2, OUT, FUNCTION, BY_ROW, DESCRIBED,
        )  # fmt: skip
        _finish(
            right, out, residual, bias, a_scale, w_scale, out_scale, M, N, row, column + COLUMNS // 2,
            ROWS, COLUMNS // 2, PIECES // 2, OUT, FUNCTION, BY_ROW, DESCRIBED,
        )  # fmt: skip
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        inside = (rows < M)[:, None] & (columns < N)[None, :]
        here = row.to(tl.int64) * N + column
        places = tl.arange(0, ROWS)[:, None] * N + tl.arange(0, COLUMNS)[None, :]
        value = total.to(tl.float32)
        if BY_ROW:
            value = value * tl.load(a_scale + rows, mask=rows < M, other=0.0)[:, None]
        factor = tl.full((COLUMNS,), 1.0, tl.float32)
        if w_scale is not None:
            factor = tl.load(w_scale + columns, mask=columns < N, other=0.0)
        if a_scale is not None and not BY_ROW:
            factor = factor * tl.load(a_scale)
        value = value * factor[None, :]
        if bias is not None:
            value = value + tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        if FUNCTION is not None:
            value = FUNCTION(value)
        if residual is not None:
            value = value + tl.load(residual + here + places, mask=inside, other=0.0).to(tl.float32)
        inverse = 1.0 if out_scale is None else 1.0 / tl.load(out_scale)
        written = encode(value, inverse, OUT)
        if DESCRIBED:
            out.store([row, column], written)
        else:
            tl.store(out + here + places, written, mask=inside)


@triton.jit
def _prefetch(
    weights: tl.tensor,
    column: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """Ask for the program's part of the weights in the L2 cache: they wait for no other kernel."""
    rows = tl.minimum(column + tl.arange(0, COLUMNS), N - 1).to(tl.int64)
    for step in range(first, last):
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [weights + rows * K + step * DEPTH],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


class _Arrivals:
    """Counters on a device, zero whenever no product runs: the program that counts last sets its own back.

    They are handed out in turn, so that products on several streams, or captured in several graphs, do not share any.
    """

    _COUNT = 1 << 20

    def __init__(self, device: torch.device) -> None:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise ValueError("a product has to run once before it is captured in a CUDA graph")
        self.counters = torch.zeros(self._COUNT, dtype=torch.int32, device=device)
        self.next = 0
        self.lock = threading.Lock()

    def take(self, count: int) -> Tensor:
        """`count` of them, at most a million."""
        aligned = -(-count // 32) * 32
        with self.lock:
            start = 0 if self.next + aligned > self._COUNT else self.next
            self.next = start + aligned
        return self.counters[start : start + count]


counters = functools.cache(_Arrivals)


def _described(tensor: Tensor, rows: int, columns: int) -> Any:
    """How the copy engine (on older GPUs: a loop of loads) finds tiles of this size in a matrix."""
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [rows, columns])
