"""Passes of a PyTorch model or of the fused engine under PyTorch's profiler, in turn with undisturbed ones.

    recorded = record(classifier, pixels, seconds=3.0, progress=nothing, trace=Path("trace.json"))

Rounds: in each, some undisturbed passes and then some under the profiler, so that a machine that grows warmer or busier
slows both alike. What the profiler takes for an event is measured in the same rounds, on operators that are no part of
the model (where a CUDA graph is replayed, on kernels of a graph), and is taken off where it falls: between the steps. It
is not fitted to the undisturbed time, so that parts and gaps can fail to add up to that.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from petalite.engine.classifier import Classifier
from petalite.errors import PetaliteError
from petalite.measure.ceilings import wait_for
from petalite.measure.latency import Call, count_forwards, time_forwards, warm_up
from petalite.profiling.layers import fused_layers, in_their_place, module_layers
from petalite.profiling.steps import Pass, Recorded
from petalite.profiling.trace import LAYER, PASS, Trace, cpu_steps, kernel_steps, read_trace
from petalite.profiling.written import add_layers

ROUNDS = 6
#: A trace of more events takes longer to read than its passes took.
_MOST_EVENTS, _MOST_PASSES = 8_000, 60
#: In one pass of a probe: kernels that do next to nothing, or operators over 2 x 2 MiB.
_SMALL, _LARGE, _BEYOND_CACHES = 200, 60, 512 * 1024
_PROBED = 20
_SHOWN_PASSES = 2


def record(classifier: Classifier, pixels: Tensor, seconds: float, progress: Call, trace: Path | None) -> Recorded:
    """Several seconds of passes over `pixels` on the classifier's device; `trace`: where two of them are written.

    Raises PetaliteError where the profiler sees no kernel on a GPU.
    """
    device = classifier.device
    wait = wait_for(device)

    def forward() -> None:
        classifier.forward(pixels)

    warm_up(forward, wait)
    once_s = 1 / count_forwards(forward, wait, seconds=0.1)
    probe = _profiled(forward, device, 1)
    steps, _ = _steps(probe, device)[0]
    if device.type == "cuda" and not steps:
        raise PetaliteError("the profiler saw no kernel on the GPU; its counters may be closed to this user (CUPTI)")
    share_s = seconds / ROUNDS / 2
    passes = max(1, min(_MOST_PASSES, math.ceil(share_s / once_s), _MOST_EVENTS // max(1, len(steps))))
    known = _annotated(classifier, pixels)
    cost = _Cost(device, graph=classifier.info.engine == "fused" and device.type == "cuda")
    undisturbed_us: list[float] = []
    traces: list[Trace] = []
    for turn in range(ROUNDS):
        for under_way in ((False, True), (True, False))[turn % 2]:
            if under_way:
                traces.append(_profiled(forward, device, passes))
            else:
                taken = time_forwards(forward, wait, samples=passes, seconds=share_s, progress=progress)
                undisturbed_us += [1e3 * ms for ms in taken]
        cost.round()
        progress()
    cost_us = cost.us()
    found = [_pass(outer, one, device, cost_us) for one in traces for outer in one.spans(PASS)]
    untold = _tell(found, known)
    if trace is not None:
        kept = _profiled(forward, device, _SHOWN_PASSES, trace)
        shown = [_pass(outer, kept, device, 0.0) for outer in kept.spans(PASS)]
        if _tell(shown, known) is None:
            add_layers(shown, trace)
    return Recorded(found, undisturbed_us, untold, clock=_clock(device, cost_us))


def _clock(device: torch.device, cost_us: float) -> str:
    if device.type == "cuda":
        return (
            f"durations of kernels as PyTorch's profiler has them; it takes {cost_us:.2f} µs a kernel, measured on kernels "
            "that do next to nothing and taken off the gaps"
        )
    return (
        f"own times of operators as PyTorch's profiler has them; it takes {cost_us:.2f} µs an operator, measured on "
        "operators that are no part of the model and taken off what they are inside of and the gaps"
    )


def _pass(outer: Any, trace: Trace, device: torch.device, cost_us: float) -> Pass:
    if device.type != "cuda":
        steps, gaps_us = cpu_steps(trace, outer, cost_us)
    else:
        steps, gaps_us = kernel_steps(trace, outer)
        gaps_us = max(0.0, gaps_us - cost_us * len(steps))
    return Pass(steps, outer.us, gaps_us)


def _steps(trace: Trace, device: torch.device) -> list[Any]:
    read = cpu_steps if device.type != "cuda" else kernel_steps
    return [read(trace, outer) for outer in trace.spans(PASS)]


def _annotated(classifier: Classifier, pixels: Tensor) -> list[Any]:
    """The steps of one pass in which every layer is annotated; of a graph, of the pass that it was recorded from."""
    runner: Any = classifier.runner
    device = classifier.device
    annotations: AbstractContextManager[None]
    forward: Callable[[], object]
    if classifier.info.engine == "module":
        annotations = module_layers(runner.model)

        def forward() -> object:
            return classifier.forward(pixels)
    else:
        annotations = fused_layers(runner.fused)
        bucket = _bucket(runner, len(pixels))
        some = pixels[:bucket]
        padded = torch.cat([some, some[-1:].expand(bucket - len(some), *some.shape[1:])])

        def forward() -> object:
            with record_function(f"{LAYER}head"):  # what no other annotation is around
                return runner.fused(padded)

    forward()
    with annotations, torch.inference_mode():
        return list(_steps(_profiled(forward, device, 1), device)[0][0])


def _bucket(runner: Any, count: int) -> int:
    """How many images the graph has that a batch is put into."""
    buckets: list[int] = runner.graphs.report()["buckets"]
    return next((bucket for bucket in buckets if bucket >= count), buckets[-1])


def _tell(passes: list[Pass], known: list[Any]) -> str | None:
    """Give each step its layer, in place; why that cannot be done, or None."""
    told = total = 0
    for number, one in enumerate(passes):
        places = in_their_place([step.name for step in one.steps], known)
        steps = [
            step if place is None else replace(step, layer=place.layer, kind=place.kind)
            for step, place in zip(one.steps, places, strict=True)
        ]
        passes[number] = replace(one, steps=steps)
        told += sum(place is not None for place in places)
        total += len(places)
    # two copies stand around a graph
    if total - told <= 4 * len(passes):
        return None
    if told < 0.9 * total:
        return "the annotated pass ran other kernels, or in another order, than the undisturbed ones"
    return None


def _profiled(forward: Callable[[], object], device: torch.device, passes: int, kept: Path | None = None) -> Trace:
    """Passes under the profiler, each annotated as one."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    wait = wait_for(device)
    wait()
    with torch_profile(activities=activities) as profiler:
        for number in range(passes + 1):
            # the first pass of each profile pays for what the profiler sets up
            with record_function(f"{PASS}{number}" if number else "petalite:first"):
                forward()
                wait()
    with tempfile.TemporaryDirectory() as folder:
        path = kept or Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return read_trace(path)


class _Cost:
    """What the profiler takes for a step, in microseconds.

    On a GPU of kernels that do next to nothing. On a CPU of small operators and those inside them, between which a large
    one has put other things in the caches, as happens in a model: with warm caches an event takes half of that.
    """

    def __init__(self, device: torch.device, graph: bool) -> None:
        self.device = device
        self.found_us: list[float] = []
        one, weight, bias = (torch.zeros(*shape, device=device) for shape in ((1, 8), (8, 8), (8,)))
        some, more = torch.ones(_BEYOND_CACHES), torch.ones(_BEYOND_CACHES)

        def kernels() -> None:
            for _ in range(_SMALL):
                one.add_(1)

        def operators() -> None:
            for _ in range(_LARGE):
                some.add_(more)
                F.linear(one, weight, bias)

        self._probe: Callable[[], object] = kernels if device.type == "cuda" else operators
        if graph:
            kernels()
            wait_for(device)()
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded, capture_error_mode="thread_local"):
                kernels()
            self._probe = recorded.replay

    @torch.inference_mode()
    def round(self) -> None:
        """Some passes of the probe with and some without the profiler."""
        wait = wait_for(self.device)
        trace = _profiled(self._probe, self.device, _PROBED)
        plain_ms = median(time_forwards(self._probe, wait, samples=_PROBED, seconds=0.0))
        steps = len(_steps(trace, self.device)[0][0])
        longer_us = median(one.us for one in trace.spans(PASS)) - 1e3 * plain_ms
        self.found_us.append(longer_us / max(1, steps))

    def us(self) -> float:
        """Never below zero, as it comes out where the profiler takes too little to measure."""
        return max(0.0, median(self.found_us))
