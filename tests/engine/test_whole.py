"""All blocks in one kernel, inside the engine: what it answers, and for which models it is not to be had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from petalite.engine.cuda import Fused
from petalite.engine.kernels.blocks import cuts
from petalite.engine.products import SEPARATE
from petalite.engine.trial import Trials, time_on_cpu
from petalite.engine.weights import read_network
from petalite.profiling.layers import fused_layers
from petalite.profiling.trace import LAYER
from tests.engine.kernels.conftest import _rounding_of_a_gpu, device
from tests.engine.networks import exact_logits, pixels_for, random_checkpoint
from tests.engine.test_cuda import _interpreted

__all__ = ["_interpreted", "_rounding_of_a_gpu", "device"]
WIDE: dict[str, Any] = {"embed_dim": 128, "num_heads": 2}
AT_ONCE = str(cuts()[0])


def made(folder: Path, device: torch.device, compute: str = "fp8", **arguments: Any) -> Fused:
    network = read_network(random_checkpoint(folder, **{**WIDE, **arguments}))
    return Fused(network, device, compute, "petalite", Trials(None, time_on_cpu))


def answers(fused: Fused, pixels: Tensor, way: str) -> Tensor:
    assert fused._whole is not None
    stream = fused._embed(pixels)
    fused.choices.hold(fused._whole.key(stream), way)
    return fused(pixels)


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_it_answers_as_the_blocks_one_by_one(pooling: str, tmp_path: Path, device: torch.device) -> None:
    checkpoint = random_checkpoint(tmp_path, **WIDE, global_pool=pooling)
    fused = Fused(read_network(checkpoint), device, "fp8", "petalite", Trials(None, time_on_cpu))
    pixels = pixels_for(checkpoint, 2).to(device)
    wanted = exact_logits(checkpoint, pixels.cpu())
    one, other = (answers(fused, pixels, way).cpu().double() for way in (AT_ONCE, SEPARATE))
    assert (one - wanted).norm() < 0.16 * wanted.norm() > (other - wanted).norm()
    assert (one - other).norm() < 0.1 * other.norm()
    assert not torch.equal(one, other)  # it was another way
    assert fused.report()["kernels"][f"blocks fp8 2x{fused.shape.tokens}x128x2"] == SEPARATE


def test_a_profile_tells_all_blocks_as_one(tmp_path: Path, device: torch.device) -> None:
    fused = made(tmp_path, device)
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device)
    answers(fused, pixels, AT_ONCE)
    with fused_layers(fused), profile(activities=[ProfilerActivity.CPU]) as profiler:
        fused(pixels)
    layers = {event.name.removeprefix(LAYER) for event in profiler.events() if event.name.startswith(LAYER)}
    assert layers == {"patch_embed.proj", "blocks", "norm"}


def test_many_images_go_one_by_one(tmp_path: Path, device: torch.device) -> None:
    fused = made(tmp_path, device)
    assert fused._whole is not None
    few, many = (torch.empty(images, fused.shape.tokens, 128, device=device) for images in (4, 40))
    assert list(fused._whole.ways(few)) == [AT_ONCE] and not fused._whole.ways(many)
    pixels = torch.zeros(40, 3, 32, 32, dtype=torch.uint8, device=device)
    fused(pixels)
    assert not any(name.startswith("blocks") for name in fused.report()["kernels"])


@pytest.mark.parametrize(
    ("compute", "arguments"),
    [
        ("int8", {}),
        ("bf16", {}),
        ("fp8", {"act_layer": "gelu_tanh"}),
        ("fp8", {"qk_norm": True}),
        ("fp8", {"embed_dim": 64}),
    ],
    ids=str,
)
def test_what_it_is_not_for(compute: str, arguments: dict[str, Any], tmp_path: Path, device: torch.device) -> None:
    assert made(tmp_path, device, compute, **arguments)._whole is None


def test_merged_tokens_go_one_by_one(tmp_path: Path, device: torch.device) -> None:
    checkpoint = random_checkpoint(tmp_path, **WIDE)
    merging = replace(checkpoint, plan=replace(checkpoint.plan, merge=(4, 0)))
    assert Fused(read_network(merging), device, "fp8", "petalite", Trials(None, time_on_cpu))._whole is None
