"""Passes under the profiler and without it: how many count, what they consist of, and in which order they run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity

from petalite.measure import profiler
from petalite.profiling import sessions
from petalite.profiling.sessions import GROUP, in_turn, profiled
from petalite.profiling.trace import PASS, cpu_steps, inside

CPU = torch.device("cpu")


def test_own_times_and_what_lies_between_are_the_passes_wall() -> None:
    a = torch.randn(64, 64)
    trace = profiled(lambda: (a @ a).softmax(-1), CPU, 3)
    passes = trace.spans(PASS)
    assert len(passes) == 3
    for outer in passes:
        steps, between = cpu_steps(trace, outer)
        assert sum(step.us for step in steps) + between == pytest.approx(outer.us, rel=1e-3)
        assert {"aten::mm", "aten::_softmax"} <= {step.name for step in steps}


@pytest.mark.parametrize(("once_s", "settling"), [(1e-4, 5), (0.04, 3), (9.0, 1)])
def test_the_first_passes_of_a_session_do_not_count(once_s: float, settling: int, tmp_path: Path) -> None:
    ran: list[int] = []
    trace = profiled(lambda: ran.append(1), CPU, 2, once_s, tmp_path / "trace.json")
    assert (len(ran), len(trace.spans(PASS))) == (settling + 2, 2)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_passes_with_and_without_the_profiler_take_turns() -> None:
    one = torch.zeros(4)

    def forward() -> None:
        one.add_(1)

    trace, undisturbed_us = in_turn(forward, CPU, groups=2, once_s=1.0)
    passes = trace.spans(PASS)
    assert len(passes) == len(undisturbed_us) == 2 * (GROUP - 1)
    assert one[0] == 1 + 4 * GROUP
    # what ran while the profiler was switched off has left nothing in the trace
    recorded = [span for span in trace.operators if span.name == "aten::add_"]
    assert len(recorded) == 1 + 2 * GROUP
    assert [len(inside(recorded, outer)) for outer in passes] == [1] * len(passes)
    assert min(undisturbed_us) > 0


def test_on_a_gpu_a_session_has_passes_of_one_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "wait_for", lambda _: lambda: None)
    monkeypatch.setattr(profiler, "activities_on", lambda _: [ProfilerActivity.CPU])
    monkeypatch.setattr(sessions, "_SETTLING_S", 0.0)
    trace, undisturbed_us = in_turn(lambda: None, torch.device("cuda", 0), groups=4)
    assert len(trace.spans(PASS)) == len(undisturbed_us) == 4 * (GROUP - 1)
