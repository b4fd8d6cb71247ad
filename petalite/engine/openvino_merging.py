"""Token merging in an OpenVINO graph: the most alike tokens become one, as `petalite.merging.merge_tokens` does it.

    x, sizes = merge(x, sizes, key, count=8, protected=1, shape=(1, 197, 768))     # now 189 tokens

Which tokens merge decides a small matrix, and one product with it merges them: every shape is fixed, and nothing is
sorted or gathered. A token's place in the order is the number of those before it. Of equals the earlier one counts.
(The plugin's Gather, GatherElements and TopK, 2026.4, are slower here, and on short rows they crash: docs/log.md.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from petalite.engine.openvino_runtime import op

Node = Any


def merge(
    x: Node, sizes: Node, key: Node, count: int, protected: int, shape: tuple[int, int, int]
) -> tuple[Node, Node]:
    """Merge `count` tokens away: x (B, N, C) as `shape` says, sizes (B, N) -> (B, N - count, C), (B, N - count).

    key: (B, heads, N, D), by which alike is judged. count: from 1 to half of the tokens after the first `protected`.
    """
    batch, tokens, _ = shape
    firsts = (tokens - protected + 1) // 2
    seconds, left = tokens - protected - firsts, firsts - count
    rank, into = _match(key, batch, tokens, protected)
    first_size = _reshape(_cut(sizes, protected, tokens, 2), [batch, firsts, 1])
    second_size = _reshape(_cut(sizes, protected + 1, tokens, 2), [batch, 1, seconds])

    moving = op.multiply(_number(op.less(rank, _float(count))), first_size)
    share = op.multiply(into, moving)  # batch, firsts, seconds: patches that move
    merged_size = op.add(second_size, op.reduce_sum(share, _whole([1]), True))
    staying = _number(op.equal(rank, _float(np.arange(count, firsts)[None, None])))  # batch, firsts, left
    from_firsts = op.divide(share, merged_size)
    from_seconds = op.multiply(_float(np.eye(seconds)[None]), op.divide(second_size, merged_size))
    if left:
        from_firsts = op.concat([staying, from_firsts], 2)
        from_seconds = op.concat([_float(np.zeros((batch, seconds, left))), from_seconds], 2)
    merged = op.matmul(
        _alternating(from_firsts, from_seconds, batch, firsts, seconds),
        _cut(x, protected, tokens),
        True,
        False,
    )

    size_parts = [op.reduce_sum(op.multiply(staying, first_size), _whole([1]), False)] if left else []
    size_parts += [_reshape(merged_size, [batch, seconds])]
    if protected:
        merged = op.concat([_cut(x, 0, protected), merged], 1)
        size_parts = [_cut(sizes, 0, protected), *size_parts]
    return merged, op.concat(size_parts, 1)


def _match(key: Node, batch: int, tokens: int, protected: int) -> tuple[Node, Node]:
    """What `petalite.merging.match` finds: the place in the order of each token of the first side, float (B, firsts, 1),
    and which of the second side it is most like, one 1 in each row of (B, firsts, seconds)."""
    firsts = (tokens - protected + 1) // 2
    seconds = tokens - protected - firsts
    mean = op.reduce_mean(key, _whole([1]), False)  # batch, tokens, D
    unit = op.normalize_l2(mean, _whole([2]), 1e-12, "max")
    alike = op.matmul(_cut(unit, protected, tokens, 2), _cut(unit, protected + 1, tokens, 2), False, True)
    best = op.reduce_max(alike, _whole([2]), True)
    places = _float(np.arange(seconds)[None, None])
    partner = op.reduce_min(op.select(op.less(alike, best), _float(seconds), places), _whole([2]), True)
    other = _reshape(best, [batch, 1, firsts])
    earlier = op.constant(np.tril(np.ones((1, firsts, firsts), bool), -1))
    before = op.logical_or(op.greater(other, best), op.logical_and(op.equal(other, best), earlier))
    return op.reduce_sum(_number(before), _whole([2]), True), _number(op.equal(partner, places))


def _alternating(first: Node, second: Node, batch: int, firsts: int, seconds: int) -> Node:
    """(B, firsts, n) and (B, seconds, n), seconds being as many or one fewer -> their rows in turn, (B, both, n)."""
    width = first.shape[2]
    if seconds < firsts:
        second = op.concat([second, _float(np.zeros((batch, 1, width)))], 1)
    pairs = op.concat([_reshape(part, [batch, firsts, 1, width]) for part in (first, second)], 2)
    return _cut(_reshape(pairs, [batch, 2 * firsts, width]), 0, firsts + seconds)


def _number(x: Node) -> Node:
    return op.convert(x, "f32")


def _float(value: Any) -> Node:
    return op.constant(np.asarray(value, np.float32, order="C"))


def _whole(value: Any) -> Node:
    return op.constant(np.asarray(value, np.int64))


def _reshape(x: Node, shape: list[int]) -> Node:
    return op.reshape(x, _whole(shape), False)


def _cut(x: Node, start: int, stop: int, step: int = 1) -> Node:
    """x[:, start:stop:step]."""
    return op.slice(x, *(_whole([value]) for value in (start, stop, step, 1)))
