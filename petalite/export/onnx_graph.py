"""A network as an ONNX graph, operation by operation: nothing is traced, nothing is left to a converter.

    model = graph(read_network(checkpoint), job)      # onnx.ModelProto; any number of images at once

The weights are those that Petalite's engines multiply, with what can be folded folded (`petalite.engine.weights`). With
`int8` every product inside the blocks is written as QuantizeLinear → DequantizeLinear → MatMul: its weight in 8-bit codes
with a scale a row, its input in the range that the checkpoint's calibration has found. ONNX Runtime multiplies those as
integers. In the last block of a model that reads its class token alone, the other tokens only give keys and values.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from petalite.engine.weights import PIXEL_MIDDLE, Block, Linear, Network, Norm
from petalite.export.codes import Codes
from petalite.export.onnx_image import cut_image
from petalite.export.onnx_ops import Ops, merge
from petalite.export.targets import Array, Job

_NARROWEST = 1e-6
#: Zero among fewer codes than this is not moved to a code of its own.
_CROWDED = 16
_FLOAT, _BYTE = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8


def graph(network: Network, job: Job) -> onnx.ModelProto:
    """Logits float32 (batch, classes) of one input as `job.inputs` says: `normalized`, `pixels` or `image`."""
    return _Writer(network, job).model()


class _Writer:
    def __init__(self, network: Network, job: Job) -> None:
        self.network, self.shape, self.job = network, network.shape, job
        self.ops, self.codes = Ops(), Codes(job.checkpoint)

    def model(self) -> onnx.ModelProto:
        given = self._input()
        x, count, sizes = self._embedded(given[0]), self.shape.tokens, None
        last = len(self.network.blocks) - 1
        for index, block in enumerate(self.network.blocks):
            x, sizes, count = self._block(block, x, sizes, count, bool(self.shape.read) and index == last)
        x = x if self.network.norm is None else self._norm(x, self.network.norm)
        x = self._pooled(x, sizes, count)
        x = x if self.network.fc_norm is None else self._norm(x, self.network.fc_norm)
        logits = self._product(x, self.network.head)
        return self.ops.model([given], logits, self.shape.classes)

    def _input(self) -> tuple[str, int, list[str | int]]:
        height, width = self.shape.image_size
        if self.job.inputs == "image":
            return "image", _BYTE, ["batch", "height", "width", 3]
        name, kind = ("pixels", _BYTE) if self.job.inputs == "pixels" else ("normalized", _FLOAT)
        return name, kind, ["batch", 3, height, width]

    def _embedded(self, given: str) -> str:
        """Patches as tokens with their positions behind the prefix tokens, (batch, tokens, width)."""
        ops, shape = self.ops, self.shape
        pixels, layer = given, self.network.normalized
        if self.job.inputs != "none":
            layer = self.network.pixels
            pixels = cut_image(ops, given, self.job.preprocess) if self.job.inputs == "image" else given
            pixels = ops("Sub", ops("Cast", pixels, to=_FLOAT), ops.constant(float(PIXEL_MIDDLE)))
        (rows, columns), (high, wide) = shape.grid, shape.patch
        for axis, size, seen in ((2, shape.image_size[0], rows * high), (3, shape.image_size[1], columns * wide)):
            pixels = pixels if size == seen else ops.cut(pixels, axis, 0, seen)
        patches = ops.transpose(ops.reshape(pixels, -1, 3, rows, high, columns, wide), 0, 2, 4, 1, 3, 5)
        x = self._product(ops.reshape(patches, -1, rows * columns, 3 * high * wide), layer)
        x = ops("Add", x, ops.constant(self.network.positions.numpy()[None]))
        if shape.prefix:
            x = ops("Concat", ops.repeated(self.network.tokens.numpy()[None], x), x, axis=1)
        return x if self.network.norm_pre is None else self._norm(x, self.network.norm_pre)

    def _block(self, block: Block, x: str, sizes: str | None, count: int, last: bool) -> tuple[str, str | None, int]:
        """One block: the tokens, what each stands for, and how many are left; in the last only those that are read."""
        ops, shape = self.ops, self.shape
        read = shape.read if last else count
        query, key, value = self._heads(block, self._norm(x, block.norm1), count, read)
        scores = ops("MatMul", query, ops.transpose(key, 0, 1, 3, 2))  # batch, heads, read, count
        if sizes is not None:
            scores = ops("Add", scores, ops.reshape(ops("Log", sizes), -1, 1, 1, count))
        attended = ops.transpose(ops("MatMul", ops("Softmax", scores, axis=-1), value), 0, 2, 1, 3)
        attended = ops.reshape(attended, -1, read, shape.heads * shape.head_dim)
        x = x if read == count else ops.cut(x, 1, 0, read)
        x = ops("Add", x, self._product(attended, block.proj))
        if block.sized and sizes is None and not last:
            sizes = ops.repeated(np.ones((1, count)), x)
        if block.merge and not last:
            assert sizes is not None, "a block that merges is sized"
            x, sizes = merge(ops, x, sizes, key, count=block.merge, protected=shape.prefix, tokens=count)
            count -= block.merge
        hidden = ops("Gelu", self._product(self._norm(x, block.norm2), block.fc1), approximate=shape.gelu)
        return ops("Add", x, self._product(hidden, block.fc2)), sizes, count

    def _heads(self, block: Block, normed: str, count: int, read: int) -> tuple[str, str, str]:
        """Queries (batch, heads, read, D), scaled by 1/√d, keys and values (batch, heads, count, D)."""
        ops, width, factor = self.ops, self.shape.heads * self.shape.head_dim, self.shape.head_dim**-0.5
        scale = 1.0 if block.q_norm is not None else factor
        if read == count:
            query, key, value = self._split(self._product(normed, block.qkv, scaled=(width, scale)), 3, count)
        else:
            codes = self._coded(normed, block.qkv)
            first = self._product(ops.cut(codes, 1, 0, read), block.qkv, (0, width), (width, scale), coded=True)
            (query,) = self._split(first, 1, read)
            key, value = self._split(self._product(codes, block.qkv, (width, 3 * width), coded=True), 2, count)
        if block.q_norm is not None:
            norm = block.q_norm
            query = self._norm(query, replace(norm, weight=norm.weight * factor, bias=norm.bias * factor))
        if block.k_norm is not None:
            key = self._norm(key, block.k_norm)
        return query, key, value

    def _split(self, x: str, parts: int, count: int) -> list[str]:
        """(batch, count, parts · heads · D) -> as many of (batch, heads, count, D)."""
        ops, shape = self.ops, self.shape
        if parts == 1:
            return [ops.transpose(ops.reshape(x, -1, count, shape.heads, shape.head_dim), 0, 2, 1, 3)]
        x = ops.transpose(ops.reshape(x, -1, count, parts, shape.heads, shape.head_dim), 2, 0, 3, 1, 4)
        split = ops.several("Split", parts, x, axis=0, num_outputs=parts)
        return [ops("Squeeze", part, ops.integers(0)) for part in split]

    def _pooled(self, x: str, sizes: str | None, count: int) -> str:
        """What the head reads, (batch, read · width): some tokens side by side, or the mean, weighted by size."""
        ops, shape = self.ops, self.shape
        if shape.read:
            return ops.reshape(x, -1, shape.read * shape.width)
        x = ops.cut(x, 1, shape.mean_from, count) if shape.mean_from else x
        if sizes is None:
            return ops("ReduceMean", x, ops.integers(1), keepdims=0)
        share = ops.cut(sizes, 1, shape.mean_from, count)
        share = ops("Div", share, ops("ReduceSum", share, ops.integers(1), keepdims=1))
        x = ops("Mul", x, ops.reshape(share, -1, count - shape.mean_from, 1))
        return ops("ReduceSum", x, ops.integers(1), keepdims=0)

    def _norm(self, x: str, norm: Norm) -> str:
        weights = (self.ops.constant(norm.weight.numpy()), self.ops.constant(norm.bias.numpy()))
        return self.ops("LayerNormalization", x, *weights, axis=-1, epsilon=norm.eps)

    def _coded(self, x: str, layer: Linear) -> str:
        """`x` through the codes in which `layer` takes it; as it is where that takes plain values."""
        if not self.job.int8 or layer.span is None:
            return x
        step, zero, shift = _grid(layer.span)
        x = self.ops("Sub", x, self.ops.constant(shift)) if shift else x
        grid = (self.ops.constant(step), self.ops.constant(zero, np.uint8))
        return self.ops("DequantizeLinear", self.ops("QuantizeLinear", x, *grid), *grid)

    def _product(
        self,
        x: str,
        layer: Linear,
        rows: tuple[int, int] | None = None,
        scaled: tuple[int, float] = (0, 1.0),
        coded: bool = False,
    ) -> str:
        """x Wᵀ + b. rows: these outputs alone. scaled: the first outputs, and by what. coded: `x` is in codes already."""
        factors = np.ones((len(layer.weight), 1), np.float32)
        factors[: scaled[0]] = scaled[1]
        chosen = slice(*(rows or (0, len(layer.weight))))
        bias = None if layer.bias is None else (layer.bias.numpy() * factors[:, 0])[chosen]
        if self.job.int8 and layer.span is not None:
            codes, steps = self.codes.rows(layer.name, layer.weight.numpy())
            codes, steps = codes[chosen], (steps * factors)[chosen, 0]
            x = x if coded else self._coded(x, layer)
            matrix = self._coded_matrix(codes, steps)
            if shift := _grid(layer.span)[2]:
                shifted = codes.sum(axis=1, dtype=np.int64) * steps * shift
                bias = shifted if bias is None else bias + shifted
        else:
            matrix = self.ops.constant((layer.weight.numpy() * factors)[chosen].T)
        y = self.ops("MatMul", x, matrix)
        return y if bias is None else self.ops("Add", y, self.ops.constant(bias))

    def _coded_matrix(self, codes: Array, steps: Array) -> str:
        """(in, out) of codes (out, in), with what a step of each output is worth."""
        zeros = self.ops.constant(np.zeros(len(codes)), np.int8)
        return self.ops(
            "DequantizeLinear", self.ops.constant(codes.T, np.int8), self.ops.constant(steps), zeros, axis=1
        )


def _grid(span: tuple[float, float]) -> tuple[float, int, float]:
    """What a step of the 256 codes is worth, the code of zero, and what is subtracted first.

    ONNX has zero on a code. Where that lies among the first few, as behind a GELU whose lowest value is three steps
    below it, most values crowd there and moving the codes by half a step costs accuracy: then the lowest value is
    subtracted, and given back in the product's bias.
    """
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    step = max(high - low, _NARROWEST) / 255
    return (step, round(-low / step), 0.0) if -low >= _CROWDED * step else (step, 0, low)
