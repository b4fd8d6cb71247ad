"""A network as an OpenVINO graph: what its CPU plugin fuses well, with Petalite's own quantization in it.

    graph = Graph(network, quantized=True, reduced=False)      # holds the weights once, as they are multiplied
    model = graph.model(batch=8)                                # openvino.Model: uint8 pixels -> logits

Nothing is left to a converter. Weights are expanded once to 8 bits a row; inputs of products have the range that
calibration has found, written as codes from 0 to 255 whose lowest value is folded into the next bias, so that no
product corrects for a zero point. The attention's 1/√d is in the queries' weights. One product gives queries, keys and
values, laid out so that the plugin computes softmax(Q Kᵀ) V in one kernel. In the last block of a model that reads its
class token alone, the other tokens only give keys and values. Every shape is fixed.

A LayerNorm's weight and bias stay operations of their own, which the plugin fuses with making the codes: as bounds of
codes that differ from channel to channel they would save a step, but version 2026.4 then computes something else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petalite.engine.openvino_merging import merge
from petalite.engine.openvino_runtime import op, ov
from petalite.engine.weights import PIXEL_MIDDLE, Block, Linear, Network, Norm

Array = NDArray[Any]
#: A node of an OpenVINO graph, or one of its outputs.
Node = Any

#: How the names of attention's operations begin, by which a profile knows the kernel that they become.
ATTENTION = "attention"
_LEVELS = 256
#: The largest weight code: where the processor adds pairs of products in 16 bits, 7 bits keep them from overflowing.
_WHOLE, _REDUCED = 127, 63
#: A span is at least this wide, so that a layer whose inputs were all alike keeps a scale.
_NARROWEST = 1e-6


def constant(value: Any, dtype: Any = np.float32) -> Node:
    """A constant of the graph, copied into it."""
    return op.constant(np.asarray(value, dtype, order="C"))


def shared(value: Array) -> Node:
    """A constant of several graphs, in the memory of an array that has to outlive them."""
    return op.constant(value, shared_memory=True)


def reshape(x: Node, shape: list[int]) -> Node:
    """`x` in another shape, its values in the same order."""
    return op.reshape(x, constant(shape, np.int64), False)


def transpose(x: Node, order: list[int]) -> Node:
    """`x` with its axes in another order."""
    return op.transpose(x, constant(order, np.int64))


def cut(x: Node, axis: int, start: int, stop: int, step: int = 1) -> Node:
    """x[start:stop:step] along an axis."""
    return op.slice(x, *(constant([value], np.int64) for value in (start, stop, step, axis)))


@dataclass(frozen=True)
class Product:
    """x Wᵀ + b as it is multiplied. matrix: int8 codes with the worth of a step of each row, or float32 without.

    span: between what values of x its codes lie; None where x is not in codes. What the lowest code stands for is in b.
    """

    matrix: Array
    steps: Array | None
    bias: Array | None
    span: tuple[float, float] | None

    def rows(self, start: int, stop: int) -> Product:
        """The outputs from `start` up to `stop` alone."""
        steps, bias = (None if part is None else part[start:stop] for part in (self.steps, self.bias))
        return replace(self, matrix=self.matrix[start:stop], steps=steps, bias=bias)


@dataclass(frozen=True)
class _Layers:
    """One block."""

    norm1: Norm
    qkv: Product
    q_norm: Norm | None
    k_norm: Norm | None
    proj: Product
    norm2: Norm
    fc1: Product
    fc2: Product
    merge: int
    sized: bool


class Graph:
    """A network's weights, as they are multiplied, and the graphs that multiply with them.

    quantized: products of layers with a span multiply 8-bit codes; without, all are plain. reduced: codes of weights
    have 7 bits.
    """

    def __init__(self, network: Network, *, quantized: bool, reduced: bool = False) -> None:
        self.shape = network.shape
        self.largest = _REDUCED if reduced else _WHOLE
        self._codes = quantized
        pixels = replace(network.pixels, span=(-float(PIXEL_MIDDLE), 255.0 - PIXEL_MIDDLE))
        self._pixels, self._normalized = self._product(pixels), self._product(network.normalized)
        self._tokens, self._positions = network.tokens.numpy(), network.positions.numpy()[None]
        self._norm_pre, self._norm, self._fc_norm = network.norm_pre, network.norm, network.fc_norm
        self._blocks = [self._layers(block) for block in network.blocks]
        self._head = self._product(replace(network.head, span=None))
        self.batch = 1

    def model(self, batch: int, *, normalized: bool = False) -> ov.Model:
        """Logits float32 (batch, classes) of pixels (batch, 3, H, W), uint8, or float32 and `normalized`.

        It shares the memory of this object's weights, which has to live as long.
        """
        self.batch = batch
        pixels = op.parameter(
            [batch, 3, *self.shape.image_size], ov.Type.f32 if normalized else ov.Type.u8, name="pixels"
        )
        return ov.Model([self.forward(pixels, normalized)], [pixels], "petalite")

    def _layers(self, block: Block) -> _Layers:
        scale = 1.0 if block.q_norm is not None else self.shape.head_dim**-0.5
        return _Layers(
            norm1=block.norm1,
            qkv=self._product(_scaled(block.qkv, len(block.qkv.weight) // 3, scale)),
            q_norm=block.q_norm,
            k_norm=block.k_norm,
            proj=self._product(block.proj),
            norm2=block.norm2,
            fc1=self._product(block.fc1),
            fc2=self._product(block.fc2),
            merge=block.merge,
            sized=block.sized,
        )

    def _product(self, layer: Linear) -> Product:
        weight = layer.weight.numpy()
        bias = None if layer.bias is None else layer.bias.numpy()
        if not self._codes or layer.span is None:
            return Product(weight, None, bias, None)
        low, high = min(layer.span[0], 0.0), max(layer.span[1], 0.0)
        high = max(high, low + _NARROWEST)
        rows, steps = quantized_rows(weight, self.largest)
        if low:
            sums = rows.sum(axis=1, dtype=np.int64) * steps[:, 0].astype(np.float64) * low
            bias = (sums if bias is None else bias + sums).astype(np.float32)
        return Product(rows, steps, bias, (low, high))

    def forward(self, pixels: Node, normalized: bool) -> Node:
        """The whole pass; logits (batch, classes)."""
        x, count = self.embedded(pixels, normalized), self.shape.tokens
        sizes: Node | None = None
        for index, block in enumerate(self._blocks):
            last = bool(self.shape.read) and index == len(self._blocks) - 1
            x, sizes, count = self.block(block, x, sizes, count, last)
        if self._norm is not None:
            x = layer_norm(x, self._norm)
        x = self.pooled(x, sizes, count)
        if self._fc_norm is not None:
            x = layer_norm(x, self._fc_norm)
        return multiply(x, self._head)

    def embedded(self, pixels: Node, normalized: bool) -> Node:
        """Patches as tokens with their positions behind the prefix tokens, (batch, tokens, width)."""
        shape, batch = self.shape, self.batch
        (rows, columns), (high, wide) = shape.grid, shape.patch
        for axis, size, seen in ((2, shape.image_size[0], rows * high), (3, shape.image_size[1], columns * wide)):
            pixels = pixels if size == seen else cut(pixels, axis, 0, seen)
        patches = reshape(pixels, [batch, 3, rows, high, columns, wide])
        patches = reshape(transpose(patches, [0, 2, 4, 1, 3, 5]), [batch, rows * columns, 3 * high * wide])
        if normalized:
            x = multiply(patches, self._normalized)
        else:
            values = op.convert(patches, ov.Type.f32)
            if self._pixels.span is None:
                values = op.subtract(values, constant(float(PIXEL_MIDDLE)))
            else:  # pixels are codes already
                values = _fake_quantize(values, 0.0, 255.0, 255.0)
            x = multiply(values, self._pixels)
        x = op.add(x, constant(self._positions))
        if shape.prefix:
            tokens = np.broadcast_to(self._tokens, (batch, shape.prefix, shape.width))
            x = op.concat([constant(tokens), x], 1)
        return x if self._norm_pre is None else layer_norm(x, self._norm_pre)

    def block(
        self, block: _Layers, x: Node, sizes: Node | None, count: int, last: bool
    ) -> tuple[Node, Node | None, int]:
        """One block: the tokens, what each stands for, and how many are left; in the last only those that are read."""
        read = self.shape.read if last else count
        query, key, value = self.heads(block, codes_for(layer_norm(x, block.norm1), block.qkv), count, read)
        scores = op.matmul(query, key, False, True)  # batch, heads, read, count
        if sizes is not None:
            scores = op.add(scores, reshape(op.log(sizes), [self.batch, 1, 1, count]))
        shares = op.softmax(scores, -1)
        weighted = op.matmul(shares, value, False, False)
        attended = transpose(weighted, [0, 2, 1, 3])
        for node in (scores, shares, weighted, attended):
            node.set_friendly_name(f"{ATTENTION}/{node.get_name()}")
        attended = reshape(attended, [self.batch, read, self.shape.heads * self.shape.head_dim])
        x = x if read == count else cut(x, 1, 0, read)
        x = op.add(x, multiply(codes_for(attended, block.proj), block.proj))
        if block.sized and sizes is None and not last:
            sizes = constant(np.ones((self.batch, count)))
        if block.merge and not last:
            x, sizes = merge(x, sizes, key, block.merge, self.shape.prefix, (self.batch, count, self.shape.width))
            count -= block.merge
        hidden = multiply(codes_for(layer_norm(x, block.norm2), block.fc1), block.fc1)
        hidden = op.gelu(hidden, "tanh" if self.shape.gelu == "tanh" else "erf")
        return op.add(x, multiply(codes_for(hidden, block.fc2), block.fc2)), sizes, count

    def heads(self, block: _Layers, normed: Node, count: int, read: int) -> tuple[Node, Node, Node]:
        """Queries (batch, heads, read, D), scaled, keys and values (batch, heads, count, D)."""
        batch, heads, size = self.batch, self.shape.heads, self.shape.head_dim
        width = heads * size
        if read == count:
            query, key, value = self._split(multiply(normed, block.qkv), 3, count)
        else:
            first = multiply(cut(normed, 1, 0, read), block.qkv.rows(0, width))
            query = transpose(reshape(first, [batch, read, heads, size]), [0, 2, 1, 3])
            key, value = self._split(multiply(normed, block.qkv.rows(width, 3 * width)), 2, count)
        if block.q_norm is not None:
            factor = size**-0.5
            query = layer_norm(
                query, replace(block.q_norm, weight=block.q_norm.weight * factor, bias=block.q_norm.bias * factor)
            )
        if block.k_norm is not None:
            key = layer_norm(key, block.k_norm)
        return query, key, value

    def _split(self, x: Node, parts: int, count: int) -> list[Node]:
        """(batch, count, parts · heads · D) -> as many of (batch, heads, count, D)."""
        x = reshape(x, [self.batch, count, parts, self.shape.heads, self.shape.head_dim])
        split = op.split(transpose(x, [2, 0, 3, 1, 4]), constant(0, np.int64), parts)
        return [op.squeeze(split.output(part), constant([0], np.int64)) for part in range(parts)]

    def pooled(self, x: Node, sizes: Node | None, count: int) -> Node:
        """What the head reads, (batch, read · width): some tokens side by side, or the mean, weighted by size."""
        shape = self.shape
        if shape.read:
            return reshape(x, [self.batch, shape.read * shape.width])
        x = cut(x, 1, shape.mean_from, count) if shape.mean_from else x
        if sizes is not None:
            share = cut(sizes, 1, shape.mean_from, count)
            share = op.divide(share, op.reduce_sum(share, constant([1], np.int64), True))
            x = op.multiply(x, reshape(share, [self.batch, count - shape.mean_from, 1]))
            return op.reduce_sum(x, constant([1], np.int64), False)
        return op.reduce_mean(x, constant([1], np.int64), False)


def multiply(x: Node, layer: Product) -> Node:
    """x Wᵀ + b of values, or of codes as `codes_for` writes them."""
    matrix = shared(layer.matrix)
    if layer.steps is not None:
        matrix = op.multiply(op.convert(matrix, ov.Type.f32), constant(layer.steps))
    y = op.matmul(x, matrix, False, True)
    return y if layer.bias is None else op.add(y, constant(layer.bias))


def codes_for(x: Node, layer: Product) -> Node:
    """`x` as `layer` takes it."""
    if layer.span is None:
        return x
    low, high = layer.span
    return _fake_quantize(x, low, high, high - low)


def layer_norm(x: Node, norm: Norm) -> Node:
    """LayerNorm over the last axis."""
    y = op.mvn(x, constant([-1], np.int64), True, norm.eps, "inside_sqrt")
    return op.add(op.multiply(y, constant(norm.weight.numpy())), constant(norm.bias.numpy()))


def quantized_rows(weight: Array, largest: int = _WHOLE) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (out, in) up to ±`largest`, and what one step of each row is worth, float32 (out, 1); W ≈ codes · steps."""
    steps = np.abs(weight).max(axis=1, keepdims=True) / largest
    steps = np.where(steps > 0, steps, 1.0).astype(np.float32)
    return np.clip(np.rint(weight / steps), -largest, largest).astype(np.int8), steps


def _fake_quantize(x: Node, low: float, high: float, width: float) -> Node:
    """256 codes for what lies between low and high, which then stand for values from 0 to `width`."""
    return op.fake_quantize(x, *(constant(value) for value in (low, high, 0.0, width)), _LEVELS)


def _scaled(layer: Linear, rows: int, factor: float) -> Linear:
    """A layer whose first outputs are multiplied by a factor."""
    if factor == 1.0:
        return layer
    weight = layer.weight.clone()
    weight[:rows] *= factor
    if layer.bias is None:
        return replace(layer, weight=weight)
    bias = layer.bias.clone()
    bias[:rows] *= factor
    return replace(layer, weight=weight, bias=bias)
