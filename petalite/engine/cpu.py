"""The forward pass on a CPU: uint8 pixels to logits by OpenVINO, whose graph is Petalite's own.

    engine = OnCpu(read_network(checkpoint), "int8")
    logits = engine.forward(pixels)      # float32 (B, classes)
    engine.report()                      # threads, streams, what was compiled, how inputs are quantized

A graph is compiled for one batch size, some tenths of a second each, when it is first needed: one for single images and
one for eight at once, into which any other number is divided. From eight images on more cores get a stream each.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor

from petalite.engine.openvino_graph import Graph
from petalite.engine.processor import Processor, this_processor
from petalite.engine.threads import usable_threads
from petalite.engine.weights import Network
from petalite.errors import PetaliteError

#: Images that one pass of the wide graph takes, and from how many on it is quicker to fill up than single images.
WIDE, _WORTH = 8, 6
#: Cores that work on one image together before images are spread over streams.
_CORES_A_STREAM = 4


class OnCpu:
    """A network on this machine's cores, in one precision: fp32, bf16, or int8 (layers without a range then in plain).

    threads: how many cores work; None for those that this process may use.
    Raises PetaliteError for threads below 1, and for int8 where no layer has a range.
    """

    def __init__(
        self, network: Network, compute: str, threads: int | None = None, processor: Processor | None = None
    ) -> None:
        self.shape, self.compute = network.shape, compute
        self.device = torch.device("cpu")
        self.processor = processor or this_processor()
        self.threads = usable_threads(threads)
        self.streams = max(1, self.threads // _CORES_A_STREAM)
        if compute == "int8" and all(layer.span is None for layer in network.linears()):
            raise PetaliteError(
                "int8 on a CPU needs the ranges of the products' inputs: quantize with calibration images"
            )
        self.scales = _scales(network) if compute == "int8" else None
        self._graph = Graph(network, quantized=compute == "int8", reduced=self.processor.reduced)
        self._core = ov.Core()
        self._compiled: dict[tuple[int, bool], list[ov.InferRequest]] = {}
        self._lock = threading.Lock()

    @property
    def plain(self) -> str:
        """The precision between the products, and of those that are not in codes."""
        if self.compute == "fp32":
            return "fp32"
        return "bf16" if self.processor.bf16 else "fp32"

    def report(self) -> dict[str, Any]:
        """JSON values: the processor, what was chosen, and what is compiled."""
        return {
            "processor": self.processor.describe(),
            "runtime": f"openvino {ov.get_version()}",
            "plain": self.plain,
            "scales": self.scales,
            "reduced_range": self.compute == "int8" and self.processor.reduced,
            "threads": self.threads,
            "streams": self.streams,
            "compiled_batches": sorted({batch for batch, _ in self._compiled}),
        }

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits float32 (B, classes) of pixels (B, 3, H, W): uint8, or floating point and normalized."""
        normalized = pixels.dtype != torch.uint8
        values = (pixels.float() if normalized else pixels).contiguous().cpu().numpy()
        answers = np.empty((len(values), self.shape.classes), np.float32)
        parts = portions(len(values))
        with self._lock:  # a request holds its own input and output
            wide = [start for start, _, batch in parts if batch == WIDE]
            stops = {start: stop for start, stop, _ in parts}
            if wide:
                self._spread(self._requests(WIDE, normalized), wide, stops, values, answers)
            for start, stop, batch in parts:
                if batch == 1:
                    request = self._requests(1, normalized)[0]
                    request.set_input_tensor(ov.Tensor(values[start:stop]))
                    request.infer()
                    answers[start:stop] = request.get_output_tensor().data
        return torch.from_numpy(answers)

    def _spread(
        self, requests: list[ov.InferRequest], starts: list[int], stops: dict[int, int], values: Any, answers: Any
    ) -> None:
        """Passes of the wide graph, as many at once as there are streams."""
        for index in range(0, len(starts), len(requests)):
            running = list(zip(starts[index : index + len(requests)], requests, strict=False))
            for start, request in running:
                part = values[start : stops[start]]
                if len(part) < WIDE:  # filled up with what is already there
                    part = np.concatenate([part, np.repeat(part[-1:], WIDE - len(part), axis=0)])
                request.set_input_tensor(ov.Tensor(part))
                request.start_async()
            for start, request in running:
                request.wait()
                answers[start : stops[start]] = request.get_output_tensor().data[: stops[start] - start]

    def _requests(self, batch: int, normalized: bool) -> list[ov.InferRequest]:
        """A request for each stream of the graph for a batch, compiled when it is first asked for."""
        known = self._compiled.get((batch, normalized))
        if known is not None:
            return known
        streams = 1 if batch == 1 else self.streams
        graph = self._graph.model(batch, normalized=normalized)
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.plain == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self.threads,
            "ENABLE_CPU_PINNING": False,  # processes that decode images take turns on the same cores
        }
        compiled = self._core.compile_model(graph, "CPU", settings)
        requests = [compiled.create_infer_request() for _ in range(streams)]
        self._compiled[batch, normalized] = requests
        return requests


def portions(count: int) -> list[tuple[int, int, int]]:
    """How `count` images are divided: (start, stop, the graph's batch size) of each pass."""
    parts = [(start, start + WIDE, WIDE) for start in range(0, count - WIDE + 1, WIDE)]
    start = len(parts) * WIDE
    if count - start >= _WORTH:
        return [*parts, (start, count, WIDE)]
    return [*parts, *((index, index + 1, 1) for index in range(start, count))]


def _scales(network: Network) -> str:
    """How inputs of products get their scales, in words."""
    layers = list(network.linears())
    static = sum(layer.span is not None for layer in layers)
    return "static" if static == len(layers) else f"static in {static} of {len(layers)} products, the others are plain"
