"""Token merging in an OpenVINO graph: the most alike tokens become one, as `petalite.merging.merge_tokens` does it.

    x, sizes = merge(x, sizes, key, count=8, protected=1, shape=(1, 197, 768))     # now 189 tokens

Every shape is fixed: which tokens merge is a matter of indices alone. Of equals the earlier one counts. Single numbers
are gathered by GatherElements: the plugin's Gather (2026.4) crashes on short rows of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import opset13 as op

Node = Any


def merge(
    x: Node, sizes: Node, key: Node, count: int, protected: int, shape: tuple[int, int, int]
) -> tuple[Node, Node]:
    """Merge `count` tokens away: x (B, N, C) as `shape` says, sizes (B, N) -> (B, N - count, C), (B, N - count).

    key: (B, heads, N, D), by which alike is judged. count: from 1 to half of the tokens after the first `protected`.
    """
    batch, tokens, _ = shape
    firsts = (tokens - protected + 1) // 2
    seconds = tokens - protected - firsts
    order, partner = _match(key, protected, tokens, firsts)
    first = _cut(x, protected, tokens, 2)
    first = op.gather(first, order, _index(1), 1)  # the most alike in front
    first_size = op.gather_elements(_cut(sizes, protected, tokens, 2), order, 1)
    second, second_size = _cut(x, protected + 1, tokens, 2), _cut(sizes, protected + 1, tokens, 2)

    moving = op.gather_elements(partner, _cut(order, 0, count), 1)
    into = op.equal(_reshape(moving, [batch, 1, count]), _whole(np.arange(seconds).reshape(1, seconds, 1), np.int32))
    moving_size = _reshape(_cut(first_size, 0, count), [batch, 1, count])
    share = op.multiply(op.convert(into, "f32"), moving_size)  # batch, seconds, count: patches that move
    merged_size = op.add(second_size, op.reduce_sum(share, _whole([2], np.int64), False))
    column = _reshape(merged_size, [batch, seconds, 1])
    kept = op.divide(_reshape(second_size, [batch, seconds, 1]), column)
    merged = op.add(op.multiply(second, kept), op.matmul(op.divide(share, column), _cut(first, 0, count), False, False))
    parts = [_cut(first, count, firsts), merged] if count < firsts else [merged]
    size_parts = [_cut(first_size, count, firsts), merged_size] if count < firsts else [merged_size]
    if protected:
        parts, size_parts = [_cut(x, 0, protected), *parts], [_cut(sizes, 0, protected), *size_parts]
    return op.concat(parts, 1), op.concat(size_parts, 1)


def _match(key: Node, protected: int, tokens: int, firsts: int) -> tuple[Node, Node]:
    """As `petalite.merging.match`: order and partner, int32 (B, firsts) each."""
    mean = op.reduce_mean(key, _whole([1], np.int64), False)  # batch, tokens, D
    unit = op.normalize_l2(mean, _whole([2], np.int64), 1e-12, "max")
    alike = op.matmul(_cut(unit, protected, tokens, 2), _cut(unit, protected + 1, tokens, 2), False, True)
    best = op.topk(alike, _index(1), 2, "max", "value", index_element_type="i32", stable=True)
    value, partner = (op.squeeze(best.output(part), _whole([2], np.int64)) for part in range(2))
    ranked = op.topk(value, _index(firsts), 1, "max", "value", index_element_type="i32", stable=True)
    return ranked.output(1), partner


def _whole(value: Any, dtype: Any) -> Node:
    return op.constant(np.asarray(value, dtype, order="C"))


def _index(value: int) -> Node:
    return op.constant(np.array(value, np.int64))


def _reshape(x: Node, shape: list[int]) -> Node:
    return op.reshape(x, _whole(shape, np.int64), False)


def _cut(x: Node, start: int, stop: int, step: int = 1) -> Node:
    """x[:, start:stop:step]."""
    return op.slice(x, *(_whole([value], np.int64) for value in (start, stop, step, 1)))
