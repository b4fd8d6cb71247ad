"""The account of a pass: its time by kind, by layer and by kernel, and whether the parts add up to the whole.

    account(recorded)["kinds"]       # [{"kind": "products", "ms": 3.1, "share": 0.56}, …, {"kind": "gaps", …}]
    account(recorded)["check"]       # {"total_ms", "accounted_ms", "difference": 0.008, "adds_up": true, …}

The total is the time of undisturbed passes; parts and gaps come from passes under the profiler. Of both the middle half
counts (the interquartile mean), so that a pass in which the machine did something else has no say. Shares are shares of
parts and gaps together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from petalite.profiling.steps import GAPS, KINDS, Pass, Recorded, Step

#: Of the total: what parts and gaps may differ from it.
TOLERANCE = 0.03
_TOP = 20
_NAME_LENGTH = 160


def account(recorded: Recorded) -> dict[str, Any]:
    """JSON values: `kinds`, `layers` (None where they are not told, with `layers_untold`), `top` kernels, `check`."""
    passes = _middle(recorded.passes, lambda one: one.wall_us)
    parts = _by(passes, lambda step: step.kind)
    gaps_ms = fmean(one.gaps_us for one in passes) / 1e3
    accounted_ms = sum(parts.values()) + gaps_ms
    kinds: list[dict[str, Any]] = [{"kind": kind, "ms": parts.get(kind, 0.0)} for kind in KINDS if parts.get(kind)]
    kinds.append({"kind": GAPS, "ms": gaps_ms})
    for entry in kinds:
        entry["share"] = entry["ms"] / accounted_ms if accounted_ms else 0.0
    return {
        "kinds": kinds,
        "layers": None if recorded.untold else _layers(passes),
        "layers_untold": recorded.untold,
        "top": _top(passes, accounted_ms),
        "check": check(recorded, accounted_ms),
        "clock": recorded.clock,
        "notes": recorded.notes,
        "passes": len(recorded.passes),
    }


def check(recorded: Recorded, accounted_ms: float) -> dict[str, Any]:
    """Parts and gaps against the undisturbed total, and how much longer passes took under the profiler."""
    total_ms = middle_mean(recorded.undisturbed_us) / 1e3
    profiled_ms = middle_mean([one.wall_us for one in recorded.passes]) / 1e3
    difference = accounted_ms / total_ms - 1
    return {
        "total_ms": total_ms,
        "accounted_ms": accounted_ms,
        "profiled_ms": profiled_ms,
        "difference": difference,
        "tolerance": TOLERANCE,
        "adds_up": abs(difference) <= TOLERANCE,
    }


def middle_mean(values: Sequence[float]) -> float:
    """The mean of the middle half of `values`."""
    return fmean(_middle(values, lambda value: value))


def _middle(values: Sequence[Any], key: Callable[[Any], float]) -> list[Any]:
    ordered = sorted(values, key=key)
    cut = len(ordered) // 4
    return ordered[cut : len(ordered) - cut]


def _by(passes: Sequence[Pass], key: Callable[[Step], Any]) -> dict[Any, float]:
    """Milliseconds a pass of the steps that share a key."""
    found: dict[Any, float] = defaultdict(float)
    for one in passes:
        for step in one.steps:
            found[key(step)] += step.us / 1e3 / len(passes)
    return dict(found)


def _layers(passes: Sequence[Pass]) -> list[dict[str, Any]]:
    """In the order in which the first pass meets them; what no layer was found for is the layer None."""
    by_kind = _by(passes, lambda step: (step.layer, step.kind))
    order = dict.fromkeys(step.layer for one in passes for step in one.steps)
    return [
        {
            "layer": layer,
            "ms": sum(ms for (other, _), ms in by_kind.items() if other == layer),
            "kinds": {kind: by_kind[layer, kind] for kind in KINDS if (layer, kind) in by_kind},
        }
        for layer in order
    ]


def _top(passes: Sequence[Pass], accounted_ms: float) -> list[dict[str, Any]]:
    times = _by(passes, lambda step: (step.name, step.kind))
    calls: dict[Any, int] = defaultdict(int)
    for one in passes:
        for step in one.steps:
            calls[step.name, step.kind] += 1
    longest = sorted(times, key=lambda key: times[key], reverse=True)[:_TOP]
    return [
        {
            "name": name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…",
            "kind": kind,
            "ms": times[name, kind],
            "share": times[name, kind] / accounted_ms,
            "calls": round(calls[name, kind] / len(passes), 1),
        }
        for name, kind in longest
    ]
