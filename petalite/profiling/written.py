"""A Chrome trace of steps, or their layers in one that PyTorch wrote: for chrome://tracing or ui.perfetto.dev.

write_trace(recorded.passes[0], Path("trace.json"))      # OpenVINO has no profiler that writes one
add_layers(passes, Path("trace.json"))                   # PyTorch's own knows no layers of undisturbed passes
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from petalite.files import atomic, write_text
from petalite.profiling.steps import Pass, Step

_PROCESS = "petalite"
_LAYERS, _STEPS = 0, 1


def write_trace(one: Pass, path: Path) -> None:
    """One pass as events: its steps on one row, the layers that they belong to on another."""
    events = [*_row(_LAYERS, "layers"), *_row(_STEPS, "steps"), *_layer_events(one.steps)]
    for step in one.steps:
        arguments = {"layer": step.layer, "kind": step.kind}
        events.append(_event(step.name, step.kind, _STEPS, step.start_us, step.us, arguments))
    write_text(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def add_layers(passes: Iterable[Pass], path: Path) -> None:
    """A row of layers in a trace whose clock is that of the passes' steps."""
    trace = json.loads(path.read_text(encoding="utf-8"))
    trace["traceEvents"] += _row(_LAYERS, "layers")
    for one in passes:
        trace["traceEvents"] += _layer_events(one.steps)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(trace), encoding="utf-8")


def _layer_events(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """Steps of one layer that follow each other are one event."""
    events: list[dict[str, Any]] = []
    for step in steps:
        end_us = step.start_us + step.us
        if events and events[-1]["name"] == (step.layer or "unknown"):
            events[-1]["dur"] = max(events[-1]["dur"], end_us - events[-1]["ts"])
        else:
            events.append(_event(step.layer or "unknown", "layer", _LAYERS, step.start_us, step.us, {}))
    return events


def _row(row: int, name: str) -> list[dict[str, Any]]:
    return [{"ph": "M", "name": "thread_name", "pid": _PROCESS, "tid": row, "args": {"name": name}}]


def _event(name: str, kind: str, row: int, start_us: float, us: float, arguments: dict[str, Any]) -> dict[str, Any]:
    """A complete event, its times in microseconds."""
    return {
        "ph": "X", "name": name, "cat": kind, "pid": _PROCESS, "tid": row, "ts": start_us, "dur": us, "args": arguments,
    }  # fmt: skip
