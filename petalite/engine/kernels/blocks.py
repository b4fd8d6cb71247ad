"""All blocks of a transformer in one kernel, for the few rows of an image or two, in FP8.

    table = Table(layers, heads=16, eps=1e-6)      # where the weights of all blocks lie; they are not copied
    x = blocks(x, table, cuts()[0])                # (B, N, C), changed in place

With few rows a pass is a chain of small products, and what it waits for is the end of one kernel and the start of the
next. Here as many programs as the GPU has multiprocessors stay for all blocks. A block is seven stages (norm, queries
keys and values, attention, projection, norm, and the two products of the MLP), and after each the programs wait for one
another at a counter in memory. While a program waits, it works out where its part of the next stage lies.

The second product of the MLP has long sums and few outputs: each sum is divided between two programs, and the norm
behind it adds the two. All is done in the same order every time, so the bits are the same every time.

The programs have to run at the same time, so the launch is a cooperative one: it starts when all fit, whatever else runs
on the GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from petalite.engine.kernels import power_of_two, stages
from petalite.engine.kernels.cuts import MOST_AT_ONCE, pieces
from petalite.engine.kernels.launching import launched
from petalite.engine.kernels.stages import COUNT, DEPTH, EVERY, NORMED
from petalite.engine.kernels.tiled import counters

_WARPS = 4
#: Rows of a product's tile, and queries that a program of attention takes.
_HIGH = 64
#: Where there is no GPU to ask, as many as an H200 has.
_MULTIPROCESSORS = 132


@dataclass(frozen=True)
class Cut:
    """One way to run it; its `str` is a stable name.

    qkv, proj, fc1, fc2: columns of the tiles of each product (or the most that divide all of them). parts: of each sum of
    fc2. loads: pieces of a product's operands that are on their way or in use at once.
    """

    qkv: int = 128
    proj: int = 32
    fc1: int = 128
    fc2: int = 64
    parts: int = 2
    loads: int = 8

    def __str__(self) -> str:
        """`one kernel 128 32 128 64/2 loads8`."""
        return f"one kernel {self.qkv} {self.proj} {self.fc1} {self.fc2}/{self.parts} loads{self.loads}"


def cuts() -> tuple[Cut, ...]:
    """The ways that are worth a trial, the likeliest first. Each is compiled for that, which takes seconds."""
    return (Cut(),)


@dataclass(frozen=True)
class Product:
    """One product of a block: out = codes · weightᵀ · scale + bias.

    weight: float8_e4m3fn (out, in). scale: float32, (out,) or one for all: a step of the inputs' codes times one of the
    weight's. bias: float32 (out,), or None.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Layer:
    """One block. norms: weight and bias, float32 (C,). steps: float32, one element: what a step of the codes is worth.

    They are those of qkv's input, of queries, keys and values, and of the inputs of proj, fc1 and fc2.
    """

    norm1: tuple[Tensor, Tensor]
    norm2: tuple[Tensor, Tensor]
    qkv: Product
    proj: Product
    fc1: Product
    fc2: Product
    steps: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Table:
    """Where the parts of all layers lie, and what their codes are worth, in two small tensors on the device.

    heads: of each layer. eps: of all norms. Raises ValueError for layers that are not all of one shape, or that the
    kernel does not take; `refused` says so without an error.
    """

    def __init__(self, layers: Sequence[Layer], heads: int, eps: float) -> None:
        reason = refused(layers, heads)
        if reason:
            raise ValueError(reason)
        self.layers, self.heads, self.eps = tuple(layers), heads, eps
        self.width, self.hidden = layers[0].fc2.weight.shape
        device = layers[0].fc1.weight.device
        self._held: list[Tensor] = []  # the table holds addresses only
        rows = [self._addresses(layer) for layer in layers]
        self.addresses = torch.tensor(rows, dtype=torch.int64).to(device)
        self.steps = torch.stack([torch.cat([step.view(1) for step in layer.steps]) for layer in layers])

    def _addresses(self, layer: Layer) -> list[int]:
        found: list[int] = []
        for norm in (layer.norm1, layer.norm2):
            found += [self._address(part) for part in norm]
        for product in (layer.qkv, layer.proj, layer.fc1, layer.fc2):
            bias = product.bias
            if bias is None:
                bias = torch.zeros(len(product.weight), device=product.weight.device)
            found += [self._address(part) for part in (product.weight, bias, product.scale)]
            found.append(int(product.scale.numel() > 1))  # columns from one scale to the next
        return found

    def _address(self, part: Tensor) -> int:
        self._held.append(part)
        return part.data_ptr()


def refused(layers: Sequence[Layer], heads: int) -> str | None:
    """Why the kernel does not take these layers; None where it does."""
    if not layers:
        return "there are no layers"
    width, hidden = layers[0].fc2.weight.shape
    if width % heads or width // heads not in (32, 64, 128):
        return f"heads of 32, 64 or 128 channels, not {width} / {heads}"
    most = max(cut.parts for cut in cuts())
    if width % DEPTH or hidden % (DEPTH * most):
        return f"widths are multiples of {DEPTH} and {DEPTH * most}, not {width} and {hidden}"
    shapes = ((3 * width, width), (width, width), (hidden, width), (width, hidden))
    for layer in layers:
        products = (layer.qkv, layer.proj, layer.fc1, layer.fc2)
        if any(one.weight.shape != shape for one, shape in zip(products, shapes, strict=True)):
            return "layers differ in shape"
        if any(one.weight.dtype != torch.float8_e4m3fn or not one.weight.is_contiguous() for one in products):
            return "weights are contiguous float8_e4m3fn"
        floats = [*layer.norm1, *layer.norm2, *layer.steps, *(one.scale for one in products)]
        floats += [one.bias for one in products if one.bias is not None]
        if any(part.dtype != torch.float32 or not part.is_contiguous() for part in floats):
            return "norms, scales, steps and biases are contiguous float32"
        if any(one.weight.data_ptr() % 16 for one in products):
            return "weights start at multiples of 16 bytes"
    return None


def takes(B: int, N: int, table: Table, cut: Cut, device: torch.device) -> bool:
    """Whether so many tokens (N) of so many images (B) are little enough for one turn of this way on this device."""
    if not 0 < N <= MOST_AT_ONCE or B < 1:
        return False
    return max(_programs(B, N, table, cut)) <= _multiprocessors(device)


def blocks(x: Tensor, table: Table, cut: Cut | None = None) -> Tensor:
    """x (B, N, C), bfloat16 or float16, behind all layers of the table; changed in place, and returned.

    cut: the likeliest where it is None. A GPU must have run it once before a CUDA graph does. On a CPU (interpreted) stage
    by stage. Raises ValueError for an x that does not fit; see `takes`.
    """
    B, N, C = x.shape
    cut = cut or cuts()[0]
    if table.width != C or not x.is_contiguous() or x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"expected contiguous 16-bit values (B, N, {table.width}), got {x.dtype} of {tuple(x.shape)}")
    if not takes(B, N, table, cut, x.device):
        raise ValueError(f"{N} tokens of {B} images are not for one kernel on {x.device}")
    rows, layers, device = B * N, len(table.layers), x.device

    def codes(columns: int) -> Tensor:
        return torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=device)

    parts = torch.empty(cut.parts, rows, C, device=device)
    room = (codes(C), codes(3 * C), codes(C), codes(table.hidden), parts, table.addresses, table.steps)
    programs = _multiprocessors(device)
    head = C // table.heads
    sizes = (programs, B, N, table.eps, math.log2(math.e) / math.sqrt(head))
    tiles = (_HIGH, -(-rows // _HIGH), *_widths(table, cut))
    shape = (C, power_of_two(C), table.heads, head, table.hidden, *tiles, *pieces(N), cut.parts)
    with torch.cuda.device_of(x):
        if device.type == "cuda":
            launched(stages.blocks_at_once, (programs,))(
                x, *room, counters(device).take(1), 0, layers, *sizes, *shape, EVERY, True,
                num_warps=_WARPS, num_stages=cut.loads, enable_fp_fusion=True, launch_cooperative_grid=True,
            )  # fmt: skip
        else:
            needed = _programs(B, N, table, cut)
            ends = [(layer, layer + 1, stage) for layer in range(layers) for stage in range(COUNT)]
            for first, last, stage in [*ends, (layers - 1, layers - 1, COUNT)]:
                grid = (needed[stage] + 1,)  # one has nothing to do
                launched(stages.blocks_at_once, grid)(x, *room, None, first, last, *sizes, *shape, 1 << stage, False)
    return x


def _widths(table: Table, cut: Cut) -> tuple[int, int, int, int]:
    """Columns of a tile of each product."""
    C = table.width
    return math.gcd(cut.qkv, 3 * C), math.gcd(cut.proj, C), math.gcd(cut.fc1, table.hidden), math.gcd(cut.fc2, C)


def _programs(B: int, N: int, table: Table, cut: Cut) -> list[int]:
    """The programs that each stage has work for, and the end."""
    C, rows = table.width, B * N
    columns = zip((3 * C, C, table.hidden, C * cut.parts), _widths(table, cut), strict=True)
    qkv, proj, fc1, fc2 = (-(-rows // _HIGH) * (count // width) for count, width in columns)
    norm, attention = -(-rows // NORMED), B * table.heads * -(-N // _HIGH)
    return [norm, qkv, attention, proj, norm, fc1, fc2, norm]


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
