"""Passes of the CPU engine's OpenVINO graphs with their nodes counted, in turn with undisturbed ones.

    recorded = record(classifier, pixels, seconds=3.0, progress=nothing)

OpenVINO says how long each node of a graph took, in the order in which they run, where the graph was compiled with
counters. So it is compiled again, by the engine's own settings, for what a batch is divided into; the undisturbed passes
are the engine's. Nodes carry the names of what they were made from, whose numbers
grow in the order of the network's code: between the products of two layers lies what belongs to the later one.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from petalite.engine.classifier import Classifier
from petalite.engine.cpu import WIDE, OnCpu, _Request, portions
from petalite.engine.openvino_graph import ATTENTION
from petalite.measure.latency import Call, count_forwards, nothing, warm_up
from petalite.profiling.steps import Pass, Recorded, Step, StepKind

#: Graphs compiled, one after the other; passes that bring one to speed; passes of one sort before the other's turn.
ROUNDS, _WARM_UPS, _GROUP = 6, 3, 8
_Counters = dict[int, dict[tuple[str, str], float]]

_NUMBER = re.compile(r"_(\d+)")
#: Node types that say what they do; `Subgraph` and `Eltwise` are known by the operation that they end with.
_TYPES: dict[str, StepKind] = {
    "FullyConnected": "products",
    "FullyConnectedQuantizedLegacy": "products",
    "MatMul": "attention",
    "Softmax": "attention",
    "FakeQuantize": "quantize",
    "Convert": "quantize",
    "MVN": "normalization",
    **dict.fromkeys(("Reorder", "Transpose", "Concat", "Reshape", "Slice", "StridedSlice", "Split", "Broadcast"), "copies"),
    **dict.fromkeys(("TopK", "Gather", "GatherElements", "ScatterUpdate", "ScatterElementsUpdate"), "merging"),
}  # fmt: skip
_OPERATIONS: dict[str, StepKind] = {
    "FakeQuantize": "quantize",
    "MatMul": "quantize",  # what scales a product's sums
    "Add": "elementwise",
    "Multiply": "elementwise",
    "Gelu": "elementwise",
    "Subtract": "elementwise",
    "Divide": "elementwise",
    "MVN": "normalization",
}


def record(classifier: Classifier, pixels: Tensor, seconds: float, progress: Call) -> Recorded:
    """Several seconds of passes over `pixels`."""
    counted = _Counted(classifier, pixels)
    warm_up(counted.undisturbed, nothing)
    once_s = 1 / count_forwards(counted.undisturbed, nothing, seconds=0.1)
    turns = max(2, round(seconds / ROUNDS / 2 / once_s / _GROUP))
    undisturbed_us: list[float] = []
    passes: list[Pass] = []
    for _ in range(ROUNDS):
        total_us, one = counted.round(turns, progress)
        undisturbed_us.append(total_us)
        passes.append(one)
    return Recorded(
        passes, undisturbed_us, counted.untold,
        clock="times of nodes as OpenVINO's counters have them, in whole microseconds, rounded down: what is cut off "
        "is in the gaps; nothing is taken off",
        notes=counted.notes,
    )  # fmt: skip


class _Counted:
    """The engine's graphs, compiled with counters, for the portions of one batch."""

    def __init__(self, classifier: Classifier, pixels: Tensor) -> None:
        runner: Any = classifier.runner
        assert isinstance(runner, OnCpu)
        self._runner, self._classifier = runner, classifier
        self._normalized = pixels.dtype != torch.uint8
        parts = portions(len(pixels))
        self._batches = [batch for _, _, batch in parts]
        self._given = [pixels]
        self.notes: list[str] = []
        if runner.streams > 1 and self._batches.count(WIDE) > 1:
            # streams overlap: the times of their nodes would add up to more than the clock's
            self._given = [pixels[start:stop] for start, stop, _ in parts]
            self.notes.append(
                f"the engine spreads such batches over {runner.streams} streams; here they follow each other"
            )
        self._graph = runner._graph()
        self._models = {
            batch: self._graph.model(batch, normalized=self._normalized) for batch in sorted(set(self._batches))
        }
        self._layers = {batch: _Layers(model.get_ordered_ops()) for batch, model in self._models.items()}
        self._requests: dict[int, Any] = {}
        self.untold = next((layers.untold for layers in self._layers.values() if layers.untold), None)

    def _compile(self) -> None:
        """Compile the graphs anew, since a counter begins at nothing only there."""
        from petalite.engine.openvino_runtime import core

        for batch, model in self._models.items():
            settings = self._runner._settings(1 if batch == 1 else self._runner.streams)
            compiled = core().compile_model(model, "CPU", {**settings, "PERF_COUNT": True})
            self._requests[batch] = _Request(compiled)

    def undisturbed(self) -> None:
        """The engine's own pass."""
        for some in self._given:
            self._classifier.forward(some)

    def round(self, turns: int, progress: Call) -> tuple[float, Pass]:
        """Graphs compiled anew; then groups of undisturbed and of counted passes in turn: the means of both.

        A counted pass is the engine's own, but for the graphs that it finds compiled. A counter holds the mean of all
        passes since the graph was compiled, so that of the first ones is taken out.
        """
        self._compile()
        with self._in_the_engine():
            _clocked_us(self.undisturbed, _WARM_UPS)
        before = self._counters()
        plain_us, counted_us = [], []
        for turn in range(turns):
            for counted in ((False, True), (True, False))[turn % 2]:
                if counted:
                    with self._in_the_engine():
                        counted_us += _clocked_us(self.undisturbed, _GROUP)
                else:
                    plain_us += _clocked_us(self.undisturbed, _GROUP)
            progress()
        return fmean(plain_us), self._pass(fmean(counted_us), before, self._counters(), len(counted_us))

    def _pass(self, wall_us: float, before: _Counters, after: _Counters, count: int) -> Pass:
        steps: list[Step] = []
        start_us = 0.0
        for batch in self._batches:
            # portions of one size share a graph, whose counters have them all
            infers = self._batches.count(batch)
            first, last = _WARM_UPS * infers, (_WARM_UPS + count) * infers
            for (name, node_type), mean_us in after[batch].items():
                us = max(0.0, (last * mean_us - first * before[batch].get((name, node_type), 0.0)) / (last - first))
                layer, kind = self._layers[batch].of(name, node_kind(name, node_type))
                steps.append(Step(f"{node_type} {operation(name)}", kind, layer, start_us, us))
                start_us += us
        return Pass(steps, wall_us, max(0.0, wall_us - start_us))

    @contextmanager
    def _in_the_engine(self) -> Iterator[None]:
        """The counted graphs where the engine keeps those that it compiled."""
        kept = self._runner._requests
        self._runner._requests = {(batch, self._normalized): [one] for batch, one in self._requests.items()}
        try:
            yield
        finally:
            self._runner._requests = kept

    def _counters(self) -> _Counters:
        """By graph and node that runs, in their order: the mean time of a pass so far."""
        return {
            batch: {
                (node.node_name, node.node_type): 1e6 * node.real_time.total_seconds()
                for node in request._request.get_profiling_info()
                if node.status.name == "EXECUTED"
            }
            for batch, request in self._requests.items()
        }


def _clocked_us(forward: Call, count: int) -> list[float]:
    """Microseconds of passes, all of which the counters have seen too."""
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        forward()
        taken.append(1e6 * (time.perf_counter() - start))
    return taken


def operation(name: str) -> str:
    """What a node was made from, without its number: `FakeQuantize` of `FakeQuantize_13656`."""
    first = name.split("/")[1] if name.startswith(f"{ATTENTION}/") else name.split("/")[0]
    return _NUMBER.sub("", first.split("___")[0])


def node_kind(name: str, node_type: str) -> StepKind:
    """What a node does, by its type, or by its name where the type is one of many uses."""
    if node_type == "Reorder":
        return "copies"
    if name.startswith(f"{ATTENTION}/"):
        return "attention"
    return _TYPES.get(node_type) or _OPERATIONS.get(operation(name), "other")


class _Layers:
    """Layers by the numbers of operations: each product of the graph begins its layer's stretch of numbers."""

    def __init__(self, operations: Iterable[Any]) -> None:
        names = [(one.get_type_name(), one.get_friendly_name()) for one in operations]
        products = [name for kind, name in names if kind == "MatMul" and not name.startswith(ATTENTION)]
        self._starts = sorted(_number(name) or 0 for name in products)
        self._norms = sorted(_number(name) or 0 for kind, name in names if kind == "MVN")
        self._names = layer_names(len(products))
        self.untold = None if self._names else f"the graph has {len(products)} products, which is no ViT's number"

    def of(self, name: str, kind: StepKind) -> tuple[str | None, StepKind]:
        """The layer of a node, and its kind: what scales and shifts a normalized value is part of normalizing it."""
        number = _number(name)
        if number is None or not self._names:
            return None, kind
        place = max(0, bisect_right(self._starts, number) - 1)
        layer, start = self._names[place], self._starts[place]
        normed = any(start < norm < number for norm in self._norms)
        if kind == "elementwise" and normed:
            kind = "normalization"
        if kind == "products" or number < start or operation(name) == "MatMul":
            return (layer if kind != "attention" else f"{_block(layer)}.attn"), kind
        return _behind(layer, self._names[-2], kind, normed), kind


def _behind(layer: str, last: str, kind: StepKind, normed: bool) -> str:
    """Where something behind a product belongs that is not part of it.

    last: the last product inside the blocks. normed: whether it stands behind the next norm.
    """
    block = _block(layer)
    if kind == "merging":
        return f"{block}.merge"
    if layer.endswith(("attn.qkv", "attn.q", "attn.kv")):
        return f"{block}.attn"
    if layer.endswith("mlp.fc1"):
        return f"{block}.mlp.act"
    if not normed and kind != "normalization":  # adding the branch to the stream
        return block or layer
    if layer.endswith("attn.proj"):
        return f"{block}.norm2"
    if layer == last:
        return "norm"
    return f"blocks.{int(block.removeprefix('blocks.')) + 1}.norm1" if block else "blocks.0.norm1"


def _block(layer: str) -> str:
    """`blocks.3` of `blocks.3.mlp.fc1`; empty outside the blocks."""
    return ".".join(layer.split(".")[:2]) if layer.startswith("blocks.") else ""


def layer_names(products: int) -> list[str]:
    """timm's names of a graph's products, in order: the patches', four a block and the head's.

    In the last block of a model that reads few tokens, queries are apart from keys and values, which makes one more.
    Empty where the number is of neither kind.
    """
    blocks, more = divmod(products - 2, 4)
    if blocks < 1 or more not in (0, 1):
        return []
    inner = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    names = [f"blocks.{block}.{layer}" for block in range(blocks) for layer in inner]
    if more:
        last = f"blocks.{blocks - 1}"
        names[-4:-3] = [f"{last}.attn.q", f"{last}.attn.kv"]
    return ["patch_embed.proj", *names, "head"]


def _number(name: str) -> int | None:
    """The number in a node's name; None where it has none."""
    numbers = _NUMBER.findall(name)
    return int(numbers[0]) if numbers else None
