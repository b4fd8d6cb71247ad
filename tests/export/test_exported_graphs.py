"""The graphs of ONNX and OpenVINO, run by their runtimes, against timm's model in float64: every kind of model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from petalite.checkpoint import Checkpoint
from petalite.errors import PetaliteError
from petalite.export.codes import Codes
from petalite.export.targets import TARGETS, Job
from petalite.plan import Plan, in_block
from petalite.quantization import packed_checkpoint
from tests.engine.networks import MODELS, checkpoint_of, exact_logits, pixels_for
from tests.tiny import tiny_checkpoint, tiny_pixels

TARGET_NAMES = [name for name, target in TARGETS.items() if target.int8]


def answers(target: str, job: Job, folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    folder.mkdir()
    exporter = TARGETS[target].module()
    exporter.write(job, folder)
    given = pixels if job.inputs == "pixels" else job.preprocess.normalize(pixels)
    return torch.from_numpy(exporter.run(job, folder)(given.numpy()))


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest) -> None:
    target = getattr(request.node, "callspec", None)
    if target is not None and (reason := TARGETS[target.params["target"]].missing()):
        pytest.skip(reason)


@pytest.mark.parametrize("name", [*MODELS, "distilled"])
@pytest.mark.parametrize("target", TARGET_NAMES)
def test_every_kind_of_model_is_the_same_function(target: str, name: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(name, tmp_path / "model")
    if target == "openvino" and any(checkpoint.plan.merge):
        with pytest.raises(PetaliteError, match="merges tokens, which the OpenVINO graph"):
            answers(target, Job(checkpoint, "pixels"), tmp_path / "export", pixels_for(checkpoint, 1))
        return
    pixels = pixels_for(checkpoint, 3)  # more than one: the number of images is not fixed
    found = answers(target, Job(checkpoint, "pixels"), tmp_path / "export", pixels)
    torch.testing.assert_close(found.double(), exact_logits(checkpoint, pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_normalized_input_is_the_same_function(target: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    found = answers(target, Job(checkpoint), tmp_path / "export", tiny_pixels(5))
    torch.testing.assert_close(found.double(), exact_logits(checkpoint, tiny_pixels(5)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_products_in_8_bits_are_near_and_no_copy_of_the_plain_ones(target: str, tmp_path: Path) -> None:
    parent = tiny_checkpoint(tmp_path / "model")
    checkpoint = with_ranges(parent, low=-6.0, high=6.0)
    plain = exact_logits(checkpoint, tiny_pixels(8))
    found = answers(target, Job(checkpoint, "pixels", int8=True), tmp_path / "export", tiny_pixels(8)).double()
    error = float((found - plain).norm() / plain.norm())
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_a_range_close_above_zero_keeps_its_lowest_value(target: str, tmp_path: Path) -> None:
    # fc2's inputs reach down to -0.17 and up to 60: zero lies within the first code, and a bias has to make up for it
    parent = tiny_checkpoint(tmp_path / "model")
    checkpoint = with_ranges(parent, low=-6.0, high=6.0, fc2=(-0.17, 20.0))
    plain = exact_logits(checkpoint, tiny_pixels(8))
    found = answers(target, Job(checkpoint, "pixels", int8=True), tmp_path / "export", tiny_pixels(8)).double()
    assert float((found - plain).norm() / plain.norm()) < 0.15


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_a_model_that_no_graph_expresses_is_refused(target: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", global_pool="map")
    with pytest.raises(PetaliteError, match="does not express pooling by 'map'"):
        TARGETS[target].module().write(Job(checkpoint), tmp_path)


def test_codes_are_the_checkpoints_own(tmp_path: Path) -> None:
    parent = tiny_checkpoint(tmp_path / "model")
    inside = [name for name in parent.outline.layers if in_block(name)]
    packed = packed_checkpoint(parent, Plan("int8-channel", dict.fromkeys(inside, "int8-channel"), "fp32"))
    name = inside[0]
    stored = packed.layer(name)["weight"]
    stored.clamp_(min=1)  # -128 has no opposite
    stored[3] = torch.where(stored[3] > 180, stored[3] - 60, stored[3])  # a row that no longer reaches its largest code
    weight = packed.unpacked(name).numpy()
    gamma = np.linspace(-2, 2, len(weight), dtype=np.float32)[:, None]  # a layer scale, folded in, some of it negative
    codes = Codes(packed)
    rows, steps = codes.rows(name, weight * gamma)
    signs = np.where(gamma < 0, -1, 1)
    np.testing.assert_array_equal(rows * signs, stored.numpy().astype(int) - 128)
    np.testing.assert_allclose(rows * steps, weight * gamma, rtol=1e-5, atol=1e-7)
    assert (steps > 0).all()
    own, other = Codes(packed), Codes(parent)
    own.rows(name, weight)
    other.rows(name, weight)
    assert own.own == {name} and other.own == set()


def with_ranges(checkpoint: Checkpoint, low: float, high: float, fc2: tuple[float, float] | None = None) -> Checkpoint:
    """The checkpoint, every layer inside its blocks with a range."""
    inside = [name for name in checkpoint.outline.layers if in_block(name)]
    spans = {name: fc2 if fc2 and name.endswith("fc2") else (low, high) for name in inside}
    return replace(checkpoint, plan=replace(checkpoint.plan, activations=spans))
