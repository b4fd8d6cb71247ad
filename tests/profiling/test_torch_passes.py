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
from petalite.profiling import cost, torch_passes
from petalite.profiling.account import account
from petalite.profiling.sessions import profiled
from petalite.profiling.steps import Pass, Step
from petalite.profiling.torch_passes import _gelu, _tell, record
from tests.tiny import tiny_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROUNDS": 2, "_MOST_PASSES": 4, "_TRIED_S": 0.0}.items():
        monkeypatch.setattr(torch_passes, name, value)
    for name, value in {"_GROUPS": 1, "_LARGE": 4, "_SMALL": 8}.items():
        monkeypatch.setattr(cost, name, value)


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


def test_a_pass_of_rounding_behind_the_first_product_is_gelu() -> None:
    def kind(name: str, layer: str | None) -> str:
        return _gelu(Step(name, "quantize", layer, 0, 1)).kind

    assert kind("_flat", "blocks.3.mlp.fc1") == kind("_rows", "blocks.0.mlp.fc1") == "elementwise"
    assert kind("_flat", "blocks.3.attn.proj") == kind("_flat", None) == kind("nvjet", "blocks.0.mlp.fc1") == "quantize"


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
    monkeypatch.setattr(torch_passes, "profiled", lambda *_: without_kernels)
    without_kernels = profiled(lambda: None, CPU, 1)
    with pytest.raises(PetaliteError, match="CUPTI"):
        record(Pretended(), torch.randn(1, 3, 32, 32), 0.1, nothing, None)  # type: ignore[arg-type]
