"""The forward pass on a CPU: uint8 pixels to logits by OpenVINO, whose graph is Petalite's own.

    engine = open_on_cpu(checkpoint, "int8", threads=None, processor=this_processor())
    logits = engine.forward(pixels)      # float32 (B, classes)
    engine.report()                      # threads, streams, what was compiled, how inputs are quantized

A graph is compiled for one batch size, some tenths of a second each, when it is first needed, and kept on disk: one for
single images and one for eight at once, into which any other number is divided. On more cores batches are spread over
streams. What compiling needs (the expanded weights, several times what is multiplied) is made for it and dropped; only
then is PyTorch imported, so that a checkpoint whose graphs are on disk runs without it (`petalite.engine.start`).
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from petalite.engine.openvino_cache import CompiledCache, Kept, fingerprint
from petalite.engine.openvino_runtime import core, ov
from petalite.engine.processor import Processor, this_processor
from petalite.engine.threads import usable_threads
from petalite.errors import PetaliteError
from petalite.plan import in_block

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from petalite.checkpoint import Checkpoint
    from petalite.engine.openvino_graph import Graph
    from petalite.engine.weights import Network

#: Images that one pass of the wide graph takes, and from how many on it is quicker to fill up than single images.
WIDE, _WORTH = 8, 6
#: Cores that work on one image together before images are spread over streams.
_CORES_A_STREAM = 4
NEEDS_RANGES = "int8 on a CPU needs the ranges of the products' inputs: quantize with calibration images"


def open_on_cpu(
    checkpoint: Checkpoint, compute: str, threads: int | None = None, processor: Processor | None = None
) -> OnCpu:
    """The engine for a checkpoint, whose compiled graphs are kept on disk from one start to the next.

    Raises PetaliteError as OnCpu does, and for a model with what `unsupported` names.
    """
    from petalite.data.preprocess import Preprocess
    from petalite.engine.weights import read_network

    if problems := checkpoint.outline.merge_problems(checkpoint.plan):
        raise PetaliteError(problems[0].removeprefix("plan.json: "))
    processor = processor or this_processor()
    inside = [name for name in checkpoint.plan.layers if in_block(name)]
    spanned = sum(name in checkpoint.plan.activations for name in inside)
    return OnCpu(
        lambda: read_network(checkpoint), compute, threads, processor,
        image_size=Preprocess.from_config(checkpoint.config).size, scales=_scales(compute, len(inside), spanned),
        cache=CompiledCache(fingerprint(checkpoint, compute, processor)),
    )  # fmt: skip


def on_cpu(network: Network, compute: str, threads: int | None = None, processor: Processor | None = None) -> OnCpu:
    """The engine for a network, nothing kept on disk. Raises PetaliteError as OnCpu does."""
    layers = list(network.linears())
    scales = _scales(compute, len(layers), sum(layer.span is not None for layer in layers))
    return OnCpu(
        lambda: network, compute, threads, processor or this_processor(), image_size=network.shape.image_size,
        scales=scales, cache=None,
    )  # fmt: skip


class OnCpu:
    """A network on this machine's cores, in one precision: fp32, bf16, or int8 (layers without a range then in plain).

    network: makes it, whenever a graph has to be compiled. threads: how many cores work; None for those that this
    process may use. scales: how inputs of 8-bit products get theirs, in words. Raises PetaliteError for threads below 1.
    """

    def __init__(
        self,
        network: Callable[[], Network],
        compute: str,
        threads: int | None,
        processor: Processor,
        *,
        image_size: tuple[int, int],
        scales: str | None,
        cache: CompiledCache | None,
    ) -> None:
        self.compute, self.processor, self.image_size = compute, processor, image_size
        self.scales, self.cache = scales, cache
        self.threads = usable_threads(threads)
        self.streams = max(1, self.threads // _CORES_A_STREAM)
        self._network = network
        self._requests: dict[tuple[int, bool], list[_Request]] = {}
        self._cached: list[int] = []
        self._kept: list[Kept] = []
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        """The CPU."""
        import torch

        return torch.device("cpu")

    @property
    def plain(self) -> str:
        """The precision between the products, and of those that are not in codes."""
        if self.compute == "fp32":
            return "fp32"
        return "bf16" if self.processor.bf16 else "fp32"

    def report(self) -> dict[str, Any]:
        """JSON values: the processor, what was chosen, what is compiled, and which of that came from the disk."""
        return {
            "processor": self.processor.describe(),
            "runtime": f"openvino {ov.get_version()}",
            "plain": self.plain,
            "reduced_range": self.compute == "int8" and self.processor.reduced,
            "threads": self.threads,
            "streams": self.streams,
            "compiled_batches": sorted({batch for batch, _ in self._requests}),
            "cached_batches": sorted(set(self._cached)),
        }

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits float32 (B, classes) of pixels (B, 3, H, W): uint8, or floating point and normalized."""
        import torch

        return torch.from_numpy(self.answers((pixels.float() if pixels.is_floating_point() else pixels).cpu().numpy()))

    def answers(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """What `forward` gives, of an array and as one."""
        normalized = pixels.dtype != np.uint8
        parts = portions(len(pixels))
        answers: list[NDArray[np.float32]] = []
        with self._lock:  # a request holds its own input and output
            for batch in (WIDE, 1):
                if of_batch := [pixels[start:stop] for start, stop, size in parts if size == batch]:
                    answers += _spread(self._compiled(batch, normalized), of_batch)
            if not answers:  # a batch of none still has classes
                return np.empty((0, self._compiled(1, normalized)[0].logits.shape[1]), np.float32)
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def timed_nodes(self, pixels: Tensor, passes: int = 5) -> list[tuple[str, str, float]]:
        """What a pass over a batch consists of: (name, OpenVINO's type, milliseconds) of each node, its mean over
        `passes`. The batch has a graph of its own for this, which counts and is not kept."""
        normalized = pixels.is_floating_point()
        graph = self._graph().model(len(pixels), normalized=normalized)
        compiled = core().compile_model(graph, "CPU", {**self._settings(1), "PERF_COUNT": True})
        request = compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor((pixels.float() if normalized else pixels).contiguous().numpy()))
        request.infer()  # the first pass makes kernels
        first = _counted(request)
        for _ in range(passes):
            request.infer()
        # a counter holds the mean of all passes since the graph was compiled: the first is taken out again
        taken = {
            node: ((passes + 1) * mean - first.get(node, 0.0)) / passes for node, mean in _counted(request).items()
        }
        return [(name, kind, milliseconds) for (name, kind), milliseconds in taken.items() if milliseconds > 0]

    def _compiled(self, batch: int, normalized: bool) -> list[_Request]:
        """A request for each stream of the graph for a batch, compiled when it is first asked for."""
        known = self._requests.get((batch, normalized))
        if known is not None:
            return known
        streams = 1 if batch == 1 else self.streams
        settings = self._settings(streams)
        name = f"{batch}{'-normalized' if normalized else ''}"
        kept = None if self.cache is None else self.cache.load(name, settings)
        if kept is not None:
            self._kept.append(kept)
            self._cached.append(batch)
            compiled = kept.compiled
        else:
            compiled = core().compile_model(self._graph().model(batch, normalized=normalized), "CPU", settings)
            if self.cache is not None:
                self.cache.keep(name, compiled)
        requests = [_Request(compiled) for _ in range(streams)]
        self._requests[batch, normalized] = requests
        return requests

    def _graph(self) -> Graph:
        from petalite.engine.openvino_graph import Graph

        return Graph(self._network(), quantized=self.compute == "int8", reduced=self.processor.reduced)

    def _settings(self, streams: int) -> dict[str, Any]:
        return {
            "INFERENCE_PRECISION_HINT": "bf16" if self.plain == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self.threads,
            "ENABLE_CPU_PINNING": False,  # processes that decode images take turns on the same cores
        }


class _Request:
    """One pass at a time of a compiled graph. pixels, logits: its own input and output, which OpenVINO reads and writes."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self.pixels: NDArray[Any] = self._request.get_input_tensor().data
        self.logits: NDArray[np.float32] = self._request.get_output_tensor().data

    def start(self, part: NDArray[Any]) -> None:
        """Begin with a part of the graph's batch, filled up with its last image."""
        self.pixels[: len(part)] = part
        self.pixels[len(part) :] = part[-1]
        self._request.start_async()

    def wait(self, count: int) -> NDArray[np.float32]:
        """The logits of the first `count` images."""
        self._request.wait()
        return self.logits[:count].copy()


def _spread(requests: list[_Request], parts: list[NDArray[Any]]) -> list[NDArray[np.float32]]:
    """Logits of each part, as many passes at once as there are requests."""
    answers = []
    for index in range(0, len(parts), len(requests)):
        running = list(zip(parts[index : index + len(requests)], requests, strict=False))
        for part, request in running:
            request.start(part)
        answers += [request.wait(len(part)) for part, request in running]
    return answers


def _counted(request: Any) -> dict[tuple[str, str], float]:
    """Milliseconds of each node, by its name and type, as a request counts them."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for node in request.get_profiling_info():
        found[node.node_name, node.node_type] += 1e3 * node.real_time.total_seconds()
    return found


def portions(count: int) -> list[tuple[int, int, int]]:
    """How `count` images are divided: (start, stop, the graph's batch size) of each pass."""
    parts = [(start, start + WIDE, WIDE) for start in range(0, count - WIDE + 1, WIDE)]
    start = len(parts) * WIDE
    if count - start >= _WORTH:
        return [*parts, (start, count, WIDE)]
    return [*parts, *((index, index + 1, 1) for index in range(start, count))]


def _scales(compute: str, products: int, spanned: int) -> str | None:
    """How inputs of 8-bit products get their scales, in words; None where there are no such products.

    products, spanned: how many layers the blocks have, and how many of them a range of their inputs. Raises PetaliteError
    for int8 where no layer has one.
    """
    if compute != "int8":
        return None
    if not spanned:
        raise PetaliteError(NEEDS_RANGES)
    return "static" if spanned == products else f"static in {spanned} of {products} products, the others are plain"
