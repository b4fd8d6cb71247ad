"""Passes of a PyTorch model or of the fused engine under PyTorch's profiler, in turn with undisturbed ones.

    recorded = record(classifier, pixels, seconds=3.0, progress=nothing, trace=Path("trace.json"))

Rounds: in each, undisturbed passes and passes under the profiler in turn, so that a machine that grows warmer or busier
slows both alike. What the profiler takes for an event (cost.py) is measured in the same rounds and taken off where it
falls: between the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from petalite.engine.classifier import Classifier
from petalite.errors import PetaliteError
from petalite.measure.ceilings import wait_for
from petalite.measure.latency import Call, time_forwards, warm_up
from petalite.profiling.cost import Cost
from petalite.profiling.layers import fused_layers, in_their_place, module_layers
from petalite.profiling.sessions import GROUP, in_turn, profiled
from petalite.profiling.steps import Pass, Recorded, Step
from petalite.profiling.trace import LAYER, PASS, Span, Trace, cpu_steps, inside, kernel_steps
from petalite.profiling.written import add_layers

ROUNDS = 10
#: In one trace: of more events it takes longer to read than its passes took.
_MOST_EVENTS, _MOST_PASSES = 30_000, 60
#: Passes to find out how long one takes.
_TRIED, _TRIED_S = 5, 0.2
_SHOWN_PASSES = 2
#: Kernels of the fused engine that apply a function, or none, and write the result in fewer bits.
_ROUNDING = ("_flat", "_rows")


def record(classifier: Classifier, pixels: Tensor, seconds: float, progress: Call, trace: Path | None) -> Recorded:
    """Several seconds of passes over `pixels` on the classifier's device; `trace`: where two of them are written.

    Raises PetaliteError where the profiler sees no kernel on a GPU.
    """
    device = classifier.device
    wait = wait_for(device)

    def forward() -> None:
        classifier.forward(pixels)

    warm_up(forward, wait)
    once_s = median(time_forwards(forward, wait, samples=_TRIED, seconds=_TRIED_S)) / 1e3
    steps, _ = _steps(profiled(forward, device, 1), device)[0]
    if device.type == "cuda" and not steps:
        raise PetaliteError("the profiler saw no kernel on the GPU; its counters may be closed to this user (CUPTI)")
    most = min(_MOST_PASSES, _MOST_EVENTS // max(1, len(steps)))
    groups = max(1, min(math.ceil(seconds / ROUNDS / once_s / 2), most) // GROUP)
    known = _annotated(classifier, pixels)
    cost = Cost(device, replayed=classifier.info.engine == "fused" and device.type == "cuda")
    undisturbed_us: list[float] = []
    traces: list[Trace] = []
    for _ in range(ROUNDS):
        one, plain_us = in_turn(forward, device, groups, once_s)
        traces.append(one)
        undisturbed_us += plain_us
        cost.round()
        progress()
    found = [_pass(outer, one, cost) for one in traces for outer in one.spans(PASS)]
    untold = _tell(found, known)
    if trace is not None:
        kept = profiled(forward, device, _SHOWN_PASSES, once_s, trace)
        shown = [_pass(outer, kept, cost) for outer in kept.spans(PASS)]
        if _tell(shown, known) is None:
            add_layers(shown, trace)
    return Recorded(found, undisturbed_us, untold, clock=_clock(cost))


def _clock(cost: Cost) -> str:
    if cost.device.type == "cuda":
        return (
            "durations of kernels as PyTorch's profiler has them, less what lies within the one before; it takes "
            f"{cost.kernel_us():.2f} µs a kernel and {cost.operator_us():.2f} an operator, measured on kernels that do next "
            "to nothing and taken off the gaps"
        )
    return (
        f"own times of operators as PyTorch's profiler has them; it takes {cost.operator_us():.2f} µs an operator, measured "
        "on operators that are no part of the model and taken off what they are inside of and the gaps"
    )


def _pass(outer: Span, trace: Trace, cost: Cost) -> Pass:
    if cost.device.type != "cuda":
        steps, gaps_us = cpu_steps(trace, outer, cost.operator_us())
        return Pass(steps, outer.us, gaps_us)
    steps, gaps_us = kernel_steps(trace, outer)
    longer_us = cost.kernel_us() * len(steps) + cost.operator_us() * len(inside(trace.operators, outer))
    return Pass(steps, outer.us, max(0.0, gaps_us - longer_us))


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
        return [_gelu(step) for step in _steps(profiled(forward, device, 1), device)[0][0]]


def _gelu(step: Step) -> Step:
    """A pass of the fused engine behind a block's first MLP product is GELU, whatever it rounds to."""
    behind = step.name in _ROUNDING and (step.layer or "").endswith(".mlp.fc1")
    return replace(step, kind="elementwise") if behind else step


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
    if total - told > 4 * len(passes) and told < 0.9 * total:
        return "the annotated pass ran other kernels, or in another order, than the undisturbed ones"
    return None
