"""The plain module taken apart on a CPU: parts, gaps, layers, and what the profiler itself takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from petalite.engine import load
from petalite.errors import PetaliteError
from petalite.measure.latency import nothing
from petalite.profiling import torch_passes
from petalite.profiling.account import account
from petalite.profiling.steps import Pass, Step
from petalite.profiling.torch_passes import _Cost, _profiled, _tell, record
from petalite.profiling.trace import PASS, cpu_steps
from tests.tiny import tiny_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROUNDS": 2, "_MOST_PASSES": 4, "_PROBED": 3, "_LARGE": 4, "_SMALL": 8}.items():
        monkeypatch.setattr(torch_passes, name, value)


def test_own_times_and_what_lies_between_are_the_passes_wall() -> None:
    a = torch.randn(64, 64)
    trace = _profiled(lambda: (a @ a).softmax(-1), CPU, 3)
    passes = trace.spans(PASS)
    assert len(passes) == 3
    for outer in passes:
        steps, between = cpu_steps(trace, outer)
        assert sum(step.us for step in steps) + between == pytest.approx(outer.us, rel=1e-3)
        assert {"aten::mm", "aten::_softmax"} <= {step.name for step in steps}


def test_a_module_is_taken_apart(tmp_path: Path) -> None:
    classifier = load(tiny_checkpoint(tmp_path / "tiny"), "cpu", engine="module")
    trace = tmp_path / "trace.json"
    recorded = record(classifier, torch.randn(2, 3, 32, 32), 0.05, nothing, trace)
    assert recorded.untold is None and len(recorded.passes) >= 4
    found = account(recorded)
    kinds = {entry["kind"]: entry["ms"] for entry in found["kinds"]}
    assert {"products", "attention", "elementwise", "gaps"} <= set(kinds)
    assert sum(kinds.values()) == pytest.approx(found["check"]["accounted_ms"])
    layers = {entry["layer"]: entry["kinds"] for entry in found["layers"]}
    assert layers["blocks.1.mlp.fc1"]["products"] > 0 and "elementwise" in layers["blocks.1.mlp.act"]
    events = json.loads(trace.read_text())["traceEvents"]
    assert {"blocks.0.attn.qkv", "aten::addmm"} <= {event.get("name") for event in events}


def test_what_the_profiler_takes_is_never_less_than_nothing() -> None:
    cost = _Cost(CPU, graph=False)
    cost.round()
    assert cost.us() >= 0
    cost.found_us = [-1.0, -3.0, 2.0]
    assert cost.us() == 0.0
    cost.found_us = [0.2, 9.0, 0.4]
    assert cost.us() == 0.4


def one(*names: str) -> Pass:
    return Pass([Step(name, "other", None, 0, 1) for name in names], 10, 0)


def test_layers_that_cannot_be_told_are_said_to_be_so() -> None:
    known = [Step(name, "products", f"layer {name}", 0, 1) for name in "abcdef"]
    passes = [one("in", *"abcdef", "out")]
    assert _tell(passes, known) is None
    assert [step.layer for step in passes[0].steps] == [None, *(f"layer {name}" for name in "abcdef"), None]
    assert "in another order" in str(_tell([one(*"uvwxyz")], known))


def test_a_gpu_whose_counters_are_closed_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    classifier: Any = load(tiny_checkpoint(tmp_path / "tiny"), "cpu", engine="module")
    given = classifier.forward

    class Pretended:
        device = torch.device("cuda", 0)
        forward = staticmethod(given)

    monkeypatch.setattr(torch_passes, "wait_for", lambda _: nothing)
    monkeypatch.setattr(torch_passes, "_profiled", lambda *_: _profiled_on_cpu)
    _profiled_on_cpu = _profiled(lambda: None, CPU, 1)
    with pytest.raises(PetaliteError, match="CUPTI"):
        record(Pretended(), torch.randn(1, 3, 32, 32), 0.1, nothing, None)  # type: ignore[arg-type]
