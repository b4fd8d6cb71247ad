"""The profiler of all measurements: what it records, and that it can be used again without a warning."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity

from petalite.measure.profiler import activities_on, profiler_on


@pytest.mark.parametrize(
    ("device", "recorded"),
    [("cpu", [ProfilerActivity.CPU]), ("cuda", [ProfilerActivity.CPU, ProfilerActivity.CUDA])],
)
def test_a_gpus_kernels_are_recorded_where_there_are_any(device: str, recorded: list[ProfilerActivity]) -> None:
    assert activities_on(torch.device(device)) == recorded


@pytest.mark.filterwarnings("error")
def test_each_session_has_its_own_events() -> None:
    a = torch.ones(8, 8)
    for operator in ("aten::mm", "aten::tanh"):
        with profiler_on(torch.device("cpu")) as profiler:
            _ = a @ a if operator == "aten::mm" else a.tanh()
        assert {event.name for event in profiler.events()} & {"aten::mm", "aten::tanh"} == {operator}
