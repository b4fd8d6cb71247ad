"""Reading PyTorch's Chrome traces: which operator, kernel and annotation ran when, and what is inside what.

    trace = read_trace(Path("trace.json"))
    trace.spans("petalite:pass")          # the passes, as they were annotated with torch.profiler.record_function
    cpu_steps(trace, span), kernel_steps(trace, span)

The trace that a person opens in a browser and what is counted here are the same file. An operator's own time is its
duration less that of the operators inside it; a kernel belongs to the pass whose launch has its correlation number.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petalite.errors import PetaliteError
from petalite.profiling.steps import Step, StepKind, finer_kind

#: How the annotations begin that mark a pass, and those that mark a layer, whose name follows.
PASS, LAYER = "petalite:pass", "petalite:layer:"
_OPERATOR = {"cpu_op"}
_LAUNCH = {"cuda_runtime", "cuda_driver"}
_KERNEL = {"kernel", "gpu_memcpy", "gpu_memset"}
_ANNOTATION = {"user_annotation"}


@dataclass
class Span:
    """Something with a beginning and an end, in microseconds."""

    name: str
    start: float
    us: float
    thread: Any
    correlation: int | None = None
    children: list[Span] = field(default_factory=list)

    @property
    def end(self) -> float:
        """When it ended."""
        return self.start + self.us

    @property
    def own_us(self) -> float:
        """Its time less that of what is inside it."""
        return self.us - sum(child.us for child in self.children)


@dataclass
class Trace:
    """The events of a trace, each sort in the order in which they began."""

    operators: list[Span]
    launches: list[Span]
    kernels: list[Span]
    annotations: list[Span]

    def spans(self, name: str) -> list[Span]:
        """Annotations that begin with `name`."""
        return [span for span in self.annotations if span.name.startswith(name)]


def read_trace(path: Path) -> Trace:
    """Raises PetaliteError where the file is no Chrome trace."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PetaliteError(f"{path} is not a Chrome trace: {error}") from error


def parse(events: Iterable[dict[str, Any]]) -> Trace:
    """The complete events of a trace by sort."""
    complete = [event for event in events if event.get("ph") == "X"]

    def sort(categories: set[str]) -> list[Span]:
        spans = [_span(event) for event in complete if str(event.get("cat")) in categories]
        return sorted(spans, key=lambda span: (span.start, -span.us))

    return Trace(sort(_OPERATOR), sort(_LAUNCH), sort(_KERNEL), sort(_ANNOTATION))


def _span(event: dict[str, Any]) -> Span:
    correlation = event.get("args", {}).get("correlation")
    return Span(str(event["name"]), float(event["ts"]), float(event.get("dur", 0.0)), event.get("tid"), correlation)


def inside(spans: Sequence[Span], outer: Span, *, any_thread: bool = False) -> list[Span]:
    """Those of `spans`, which are in order, that lie within `outer`, on its thread or on any."""
    first = bisect_right(spans, outer.start, key=lambda span: span.start)
    while first > 0 and spans[first - 1].start >= outer.start:
        first -= 1
    found = []
    for span in spans[first:]:
        if span.start > outer.end:
            break
        if span.end <= outer.end and (any_thread or span.thread == outer.thread):
            found.append(span)
    return found


def nested(spans: Sequence[Span]) -> list[Span]:
    """The outermost of `spans` (in order, of one thread), each with what lies inside it as its children."""
    roots: list[Span] = []
    stack: list[Span] = []
    for span in spans:
        span.children = []
        while stack and stack[-1].end <= span.start:
            stack.pop()
        (stack[-1].children if stack else roots).append(span)
        stack.append(span)
    return roots


def cpu_steps(trace: Trace, outer: Span, cost_us: float = 0.0) -> tuple[list[Step], float]:
    """The operators of a pass, each with its own time, and the time between them (Python).

    cost_us: what the profiler takes for one operator; it falls to what is around the operator, and is taken off there.
    """
    layers = _Layers(trace, outer)
    roots = nested(inside(trace.operators, outer))
    steps: list[Step] = []

    def visit(span: Span, scope: StepKind | None) -> None:
        kind = finer_kind(span.name, scope)
        if span.name == "aten::matmul" and any(child.name == "aten::bmm" for child in span.children):
            kind = "attention"  # the product of two activations, as attention written out has it
        own = max(0.0, span.own_us - cost_us * len(span.children))
        steps.append(Step(span.name, kind, layers.at(span.start), span.start, own))
        for child in span.children:
            visit(child, kind)

    for root in roots:
        visit(root, None)
    between = outer.us - sum(root.us for root in roots) - cost_us * len(roots)
    return steps, max(0.0, between)


def kernel_steps(trace: Trace, outer: Span) -> tuple[list[Step], float]:
    """The kernels that a pass launched, in the order in which they ran, and how long the device had none of them.

    Each has the layer and, where its own name does not tell, the kind of what launched it. While two ran at once (one may
    start early and wait for the end of the one before it) the time is that of the first alone: no moment counts twice.
    """
    launches = {span.correlation: span for span in inside(trace.launches, outer, any_thread=True)}
    layers = _Layers(trace, outer)
    scopes = _scopes(inside(trace.operators, outer), launches.values())
    steps: list[Step] = []
    until = outer.start
    for span in trace.kernels:
        if span.correlation in launches:
            kind = finer_kind(span.name, scopes[span.correlation])
            own_us = max(0.0, span.end - max(span.start, until))
            layer = layers.at(launches[span.correlation].start)
            steps.append(Step(span.name, kind, layer, span.start, own_us))
            until = max(until, span.end)
    return steps, max(0.0, outer.us - sum(step.us for step in steps))


def _scopes(operators: Iterable[Span], launches: Iterable[Span]) -> dict[int | None, StepKind | None]:
    """By correlation: the kind of the operators around each launch, None where they do not tell."""
    found: dict[int | None, StepKind | None] = {}
    coming = iter(operators)
    following = next(coming, None)
    around: list[tuple[Span, StepKind | None]] = []
    for launch in sorted(launches, key=lambda span: span.start):
        while following is not None and following.start <= launch.start:
            while around and around[-1][0].end <= following.start:
                around.pop()
            scope = around[-1][1] if around else None
            kind = finer_kind(following.name, scope)
            around.append((following, kind if kind != "other" else scope))
            following = next(coming, None)
        while around and around[-1][0].end < launch.end:
            around.pop()
        found[launch.correlation] = around[-1][1] if around else None
    return found


class _Layers:
    """Which layer was being computed when."""

    def __init__(self, trace: Trace, outer: Span) -> None:
        self._spans = [span for span in inside(trace.annotations, outer) if span.name.startswith(LAYER)]

    def at(self, moment: float) -> str | None:
        """The innermost layer around a moment."""
        found = None
        for span in self._spans:
            if span.start > moment:
                break
            if span.end >= moment:
                found = span.name.removeprefix(LAYER)
        return found
