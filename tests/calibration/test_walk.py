"""Calibration end to end on a small model: every method, every format, and input that cannot work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from petalite.calibration import METHODS, Calibrated, calibrate, calibration_pixels
from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.data import Preprocess, open_data
from petalite.engine import load
from petalite.errors import PetaliteError
from petalite.formats import FORMATS
from petalite.plan import Plan
from petalite.quantization import apply_plan, quantize
from petalite.verification import verify
from tests.tiny import tiny_checkpoint, tiny_images, tiny_pixels

STEPS = 30


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("parent") / "fp32")


def plan_of(parent: Checkpoint, name: str, edges: str | None = "int8-channel") -> Plan:
    return Plan.uniform(name, rest="bf16", layers=parent.outline.layers, edges=edges)


def error(parent: Checkpoint, plan: Plan, found: Calibrated, out: Path) -> float:
    """Relative error of the logits on images that the calibration has not seen."""
    built = apply_plan(parent, plan, out, calibrated=found.packed)
    pixels = tiny_pixels(32, seed=9)
    exact = load(parent, "cpu").logits(pixels)
    return float((load(built, "cpu", compute="fp32").logits(pixels) - exact).norm() / exact.norm())


def test_the_better_the_method_the_smaller_the_error(parent: Checkpoint, tmp_path: Path) -> None:
    plan = plan_of(parent, "int2")
    errors = [
        error(parent, plan, calibrate(parent, plan, tiny_pixels(48), method=method, steps=200), tmp_path / method)
        for method in METHODS
    ]
    assert errors[0] > errors[1] > errors[2] > errors[3]


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if not format.plain])
def test_every_format_calibrates_and_what_is_written_verifies(parent: Checkpoint, tmp_path: Path, name: str) -> None:
    plan = plan_of(parent, name, None)
    found = calibrate(parent, plan, tiny_pixels(16), method="gptq")
    built = apply_plan(parent, replace(plan, activations=found.activations), tmp_path / name, calibrated=found.packed)
    assert verify(built.path).ok
    assert torch.equal(load(built, "cpu").logits(tiny_pixels()), load(built.path, "cpu").logits(tiny_pixels()))
    assert set(built.plan.activations) == {layer for layer in plan.layers if layer != "patch_embed.proj"}
    assert read_checkpoint(built.path).plan == built.plan


def test_reconstruction_is_the_same_every_time(parent: Checkpoint) -> None:
    plan = plan_of(parent, "int3")
    first, second = (calibrate(parent, plan, tiny_pixels(16), method="reconstruct", steps=STEPS) for _ in range(2))
    assert all(
        torch.equal(first.packed[layer][key], second.packed[layer][key])
        for layer in first.packed
        for key in first.packed[layer]
    )


def test_embeddings_and_head_in_8_bits(parent: Checkpoint, tmp_path: Path) -> None:
    built = quantize(parent, "int4", tmp_path / "int4", edges="int8-channel")
    plain = quantize(parent, "int4", tmp_path / "plain")
    assert (
        built.plan.layers["pos_embed"]
        == built.plan.layers["patch_embed.proj"]
        == built.plan.layers["head"]
        == "int8-channel"
    )
    assert built.disk_bytes < plain.disk_bytes
    assert verify(built.path).ok
    original = parent.plain_tensors()
    for name in ("pos_embed", "patch_embed.proj.weight", "head.weight"):
        restored = built.plain_tensors()[name]
        assert restored.shape == original[name].shape
        assert ((restored - original[name]).norm() / original[name].norm()).item() < 0.02


def test_too_few_images_of_another_size_or_kind_are_refused(parent: Checkpoint) -> None:
    plan = plan_of(parent, "int4")
    with pytest.raises(PetaliteError, match="15 calibration images are too few; use at least 16"):
        calibrate(parent, plan, tiny_pixels(15))
    with pytest.raises(
        PetaliteError, match=r"must be uint8 \(N, 3, 32, 32\) for this checkpoint, got uint8 \(16, 3, 48, 48\)"
    ):
        calibrate(parent, plan, torch.zeros(16, 3, 48, 48, dtype=torch.uint8))
    with pytest.raises(PetaliteError, match="got float32"):
        calibrate(parent, plan, tiny_pixels(16).float())
    with pytest.raises(PetaliteError, match=r"unknown calibration 'gptk' \(did you mean 'gptq'\?\)"):
        calibrate(parent, plan, tiny_pixels(16), method="gptk")


def test_weights_and_activations_that_are_not_finite_are_refused(parent: Checkpoint, tmp_path: Path) -> None:
    plan = plan_of(parent, "int4")
    broken = dict(parent.tensors)
    broken["blocks.1.mlp.fc1.weight"] = broken["blocks.1.mlp.fc1.weight"].clone()
    broken["blocks.1.mlp.fc1.weight"][0, 0] = float("nan")
    with pytest.raises(PetaliteError, match=r"blocks\.1\.mlp\.fc1: the weight holds NaN or infinity"):
        calibrate(replace(parent, tensors=broken), plan, tiny_pixels(16))
    huge = dict(parent.tensors)
    huge["blocks.0.norm1.weight"] = torch.full_like(huge["blocks.0.norm1.weight"], float("inf"))
    with pytest.raises(PetaliteError, match="activations that are NaN or infinite"):
        calibrate(replace(parent, tensors=huge), plan, tiny_pixels(16))


def test_images_for_calibration_come_from_the_training_split(tmp_path: Path, parent: Checkpoint) -> None:
    images = open_data(tiny_images(tmp_path / "images", train=8), 0)
    preprocess = Preprocess.from_config(parent.config)
    first = calibration_pixels(images, preprocess, 20, seed=1, workers=0)
    assert first.shape == (20, 3, 32, 32)
    assert torch.equal(first, calibration_pixels(images, preprocess, 20, seed=1, workers=0))
    assert not torch.equal(first, calibration_pixels(images, preprocess, 20, seed=2, workers=0))
    assert len(calibration_pixels(images, preprocess, 500, workers=0)) == 24  # as many as there are
    with pytest.raises(PetaliteError, match="4 calibration images are too few"):
        calibration_pixels(images, preprocess, 4, workers=0)
    few = open_data(tiny_images(tmp_path / "few", train=3), 0)
    with pytest.raises(PetaliteError, match="has 9 training images; a calibration needs at least 16"):
        calibration_pixels(few, preprocess, 64, workers=0)


def test_a_plan_that_names_what_does_not_exist_is_refused(parent: Checkpoint, tmp_path: Path) -> None:
    plan = plan_of(parent, "int4")
    with pytest.raises(
        PetaliteError, match=r"a layer 'blocks\.1\.mlp\.fc3' that the model does not have \(did you mean"
    ):
        apply_plan(parent, replace(plan, layers={**plan.layers, "blocks.1.mlp.fc3": "int4"}), tmp_path / "a")
    with pytest.raises(PetaliteError, match=r"unknown format 'int5'"):
        apply_plan(parent, replace(plan, layers={**plan.layers, "head": "int5"}), tmp_path / "b")
    with pytest.raises(PetaliteError, match="rest must be a plain format"):
        apply_plan(parent, replace(plan, rest="int4"), tmp_path / "c")
    assert not list(tmp_path.iterdir())
