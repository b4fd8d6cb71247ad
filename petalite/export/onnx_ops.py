"""A small writer of ONNX graphs: an operation is a call that gives the name of its output, a constant is stored once.

ops = Ops()
y = ops("MatMul", "x", ops.constant(weight))
model = ops.model(inputs=[…], output=y, classes=102)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from petalite.export.targets import Array

#: The oldest set of operations that has Gelu; LayerNormalization and antialiased Resize are older.
OPSET = 20
_IR = 9


class Ops:
    """Nodes and constants in the order in which they were asked for."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[Any, ...], str] = {}

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One operation; the name of its only output."""
        return self.several(kind, 1, *inputs, **attributes)[0]

    def several(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """One operation; the names of its outputs."""
        names = [f"{kind.lower()}_{len(self.nodes)}" + (f"_{index}" if outputs > 1 else "") for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A tensor of the graph; small equal ones share one."""
        array = np.asarray(value, dtype=dtype, order="C")
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 8 else (len(self.constants),)
        if key not in self._known:
            self._known[key] = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def integers(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.constant(values, np.int64)

    def reshape(self, x: str, *shape: int) -> str:
        """`x` in another shape; one size may be -1."""
        return self("Reshape", x, self.integers(*shape))

    def transpose(self, x: str, *order: int) -> str:
        """`x` with its axes in another order."""
        return self("Transpose", x, perm=list(order))

    def cut(self, x: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        """x[start:stop:step] along an axis."""
        return self("Slice", x, *(self.integers(value) for value in (start, stop, axis, step)))

    def size(self, x: str, axis: int) -> str:
        """How long `x` is along an axis, int64 (1,)."""
        return self("Shape", x, start=axis, end=axis + 1)

    def repeated(self, value: Array, like: str) -> str:
        """A constant (1, …) as often as `like` has rows."""
        shape = self("Concat", self.size(like, 0), self.integers(*value.shape[1:]), axis=0)
        return self("Expand", self.constant(value), shape)

    def model(self, inputs: list[tuple[str, int, list[Any]]], output: str, classes: int) -> onnx.ModelProto:
        """The whole, checked. inputs: name, onnx.TensorProto's type, shape with names for sizes that may change."""
        self.nodes.append(helper.make_node("Identity", [output], ["logits"], name="logits"))
        graph = helper.make_graph(
            self.nodes,
            "petalite",
            [helper.make_tensor_value_info(*given) for given in inputs],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", classes])],
            self.constants,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="petalite", ir_version=_IR
        )


def merge(ops: Ops, x: str, sizes: str, key: str, *, count: int, protected: int, tokens: int) -> tuple[str, str]:
    """Merge `count` tokens away, as `petalite.merging.merge_tokens`: x (B, N, C), sizes (B, N) -> N less `count` of each.

    key: (B, heads, N, D), by which alike is judged. tokens: N. Of equals the earlier one counts.
    """
    firsts = (tokens - protected + 1) // 2
    seconds = tokens - protected - firsts
    mean = ops("ReduceMean", key, ops.integers(1), keepdims=0)  # B, N, D
    norm = ops("Max", ops("ReduceL2", mean, ops.integers(2), keepdims=1), ops.constant(1e-6))
    unit = ops("Div", mean, norm)
    others = ops.transpose(ops.cut(unit, 1, protected + 1, tokens, 2), 0, 2, 1)
    alike = ops("MatMul", ops.cut(unit, 1, protected, tokens, 2), others)  # B, firsts, seconds
    partner = ops("ArgMax", alike, axis=2, keepdims=0)
    best = ops("ReduceMax", alike, ops.integers(2), keepdims=0)
    order = ops.several("TopK", 2, best, ops.integers(firsts), axis=1, largest=1, sorted=1)[1]

    places = ops("Unsqueeze", order, ops.integers(2))
    first = ops("GatherND", ops.cut(x, 1, protected, tokens, 2), places, batch_dims=1)  # the most alike in front
    first_size = ops("GatherElements", ops.cut(sizes, 1, protected, tokens, 2), order, axis=1)
    second, second_size = ops.cut(x, 1, protected + 1, tokens, 2), ops.cut(sizes, 1, protected + 1, tokens, 2)
    moving = ops("GatherElements", partner, ops.cut(order, 1, 0, count), axis=1)
    into = ops("Equal", ops.reshape(moving, -1, 1, count), ops.constant(np.arange(seconds)[None, :, None], np.int64))
    moved = ops.reshape(ops.cut(first_size, 1, 0, count), -1, 1, count)
    share = ops("Mul", ops("Cast", into, to=onnx.TensorProto.FLOAT), moved)  # B, seconds, count: patches that move
    merged_size = ops("Add", second_size, ops("ReduceSum", share, ops.integers(2), keepdims=0))
    column = ops.reshape(merged_size, -1, seconds, 1)
    kept = ops("Mul", second, ops("Div", ops.reshape(second_size, -1, seconds, 1), column))
    merged = ops("Add", kept, ops("MatMul", ops("Div", share, column), ops.cut(first, 1, 0, count)))
    parts = [(first, first_size, count, firsts)] if count < firsts else []
    left = [(ops.cut(values, 1, start, stop), ops.cut(size, 1, start, stop)) for values, size, start, stop in parts]
    left = [*left, (merged, merged_size)]
    if protected:
        left = [(ops.cut(x, 1, 0, protected), ops.cut(sizes, 1, 0, protected)), *left]
    values, counts = ([pair[side] for pair in left] for side in range(2))
    if len(left) == 1:
        return values[0], counts[0]
    return ops("Concat", *values, axis=1), ops("Concat", *counts, axis=1)
