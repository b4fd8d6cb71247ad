"""Layers from an annotated pass, laid on passes that were not annotated."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from petalite.engine.weights import read_network
from petalite.profiling.layers import fused_layers, in_their_place, module_layers
from petalite.profiling.sessions import profiled
from petalite.profiling.steps import Step
from petalite.profiling.torch_passes import _steps
from petalite.profiling.trace import LAYER
from tests.tiny import tiny_checkpoint, tiny_pixels

CPU = torch.device("cpu")


def known(*names: str) -> list[Step]:
    return [Step(name, "other", f"layer {place}", 0, 1) for place, name in enumerate(names)]


def layers(names: str, of: list[Step]) -> list[str | None]:
    return [step.layer if step else None for step in in_their_place(names.split(), of)]


def test_kernels_in_the_same_order_are_the_same() -> None:
    steps = known("a", "b", "a")
    assert layers("a b a", steps) == ["layer 0", "layer 1", "layer 2"]


def test_copies_around_and_several_times_over() -> None:
    steps = known("a", "b")
    assert layers("in a b out in a b out", steps) == [
        None,
        "layer 0",
        "layer 1",
        None,
        None,
        "layer 0",
        "layer 1",
        None,
    ]


def test_another_order_is_told_where_it_agrees_and_nowhere_else() -> None:
    assert layers("a b c x d", known("a", "b", "c", "d")) == ["layer 0", "layer 1", "layer 2", None, "layer 3"]
    assert layers("x y", known("a", "b")) == [None, None]
    assert layers("a", []) == [None]


def test_every_layer_of_the_module_is_annotated_and_hooks_go(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    model = checkpoint.skeleton()
    model.load_state_dict(checkpoint.plain_tensors(), assign=True)
    pixels = torch.randn(1, 3, 32, 32)
    with module_layers(model), torch.inference_mode():
        steps, _ = _steps(profiled(lambda: model(pixels), CPU, 1), CPU)[0]
    found = {step.layer for step in steps if step.kind == "products"}
    inner = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert found == {"patch_embed.proj", "head", *(f"blocks.{block}.{layer}" for block in (0, 1) for layer in inner)}
    assert {step.layer for step in steps if step.kind == "attention"} == {"blocks.0.attn", "blocks.1.attn"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_every_layer_of_the_fused_engine_is_annotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    from petalite.engine.cuda import Fused
    from petalite.engine.trial import Trials, time_on_cpu
    from petalite.profiling import layers as module

    seen: list[str] = []

    class Recorded:
        def __init__(self, name: str) -> None:
            seen.append(name.removeprefix(LAYER))

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(module, "record_function", Recorded)
    fused = Fused(
        read_network(tiny_checkpoint(tmp_path / "tiny", global_pool=pool)),
        CPU,
        "fp32",
        trials=Trials(None, time_on_cpu),
    )
    before = fused(tiny_pixels(1))
    assert seen == []
    with fused_layers(fused):
        torch.testing.assert_close(fused(tiny_pixels(1)), before, rtol=0, atol=0)
    inner = ("attn.qkv", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")
    assert {f"blocks.{block}.{layer}" for block in (0, 1) for layer in inner} < set(seen)
    assert {"patch_embed.proj", "blocks.0", "blocks.0.attn", "norm"} < set(seen)
    count = len(seen)
    fused(tiny_pixels(1))
    assert len(seen) == count  # the engine's own steps are there again
