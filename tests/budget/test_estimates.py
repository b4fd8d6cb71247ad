"""What plans are estimated to cost where one engine multiplies all layers alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petalite.budget import estimates
from petalite.engine.choice import Choice
from tests.tiny import tiny_checkpoint, tiny_pixels


def test_on_the_fused_engine_time_does_not_depend_on_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(estimates, "engine_unavailable", lambda checkpoint, device: None)
    monkeypatch.setattr(
        estimates, "choose_compute", lambda *arguments: asked.append(arguments) or Choice("bf16", "it can")
    )
    monkeypatch.setattr(estimates, "layer_times", lambda *_: pytest.fail("modules are not what runs"))
    parent = tiny_checkpoint(tmp_path / "parent")
    problem = estimates.estimate(
        parent, tiny_pixels(16), ("fp32", "int8-channel", "int4"), objective="latency", merge=False,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert asked == [("auto", "mixed", None, "cpu")]
    assert {value for formats in problem.ms.values() for value in formats.values()} == {0.0}
    # then of two formats that damage as little the smaller one is taken
    chosen = problem.solve(most=1e9)
    assert chosen is not None and chosen.ms == problem.merges[0].base_ms > 0
    assert {chosen.plan.layers[name] for name in problem.ms} == {"int4"}
