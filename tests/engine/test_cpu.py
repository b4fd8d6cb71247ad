"""The engine on a CPU: every model and format against float64, in every precision, however a batch is divided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from petalite.calibration.ranges import InputRange
from petalite.checkpoint import Checkpoint
from petalite.data import Preprocess
from petalite.engine.cpu import WIDE, on_cpu, portions
from petalite.engine.openvino_graph import quantized_rows
from petalite.engine.processor import this_processor
from petalite.engine.weights import Network, read_network
from petalite.errors import PetaliteError
from petalite.formats import FORMATS
from petalite.quantization import quantize
from tests.engine.networks import MODELS, checkpoint_of, exact_logits, pixels_for
from tests.tiny import tiny_checkpoint, tiny_pixels

NAMES = [*MODELS, "distilled"]


def calibrated(checkpoint: Checkpoint, pixels: Tensor) -> Checkpoint:
    """With the range of every block layer's input, seen in timm's model."""
    model = checkpoint.skeleton()
    model.load_state_dict(checkpoint.plain_tensors(), assign=True)
    spans = {name: InputRange() for name in checkpoint.plan.layers if name.startswith("blocks.")}
    for name, span in spans.items():
        model.get_submodule(name).register_forward_pre_hook(lambda _, x, span=span: span.add(x[0]))
    with torch.no_grad():
        model.eval()(Preprocess.from_config(checkpoint.config).normalize(pixels))
    plan = replace(checkpoint.plan, activations={name: span.best() for name, span in spans.items()})
    return replace(checkpoint, plan=plan)


def error(found: Tensor, exact: Tensor) -> float:
    """How far `found` is off, of what the answers differ by among images and classes."""
    exact = exact.double()
    return float((found - exact).norm() / (exact - exact.mean()).norm())


@pytest.mark.parametrize("name", NAMES)
def test_in_32_bits_it_answers_as_the_model(tmp_path: Path, name: str) -> None:
    checkpoint = checkpoint_of(name, tmp_path / "tiny")
    pixels = pixels_for(checkpoint, 3)
    exact = exact_logits(checkpoint, pixels)
    engine = on_cpu(read_network(checkpoint), "fp32")
    torch.testing.assert_close(engine.forward(pixels), exact.float(), rtol=1e-4, atol=1e-5)
    normalized = Preprocess.from_config(checkpoint.config).normalize(pixels)
    torch.testing.assert_close(engine.forward(normalized), exact.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_in_8_bits_it_answers_nearly_as_the_model(tmp_path: Path, name: str) -> None:
    checkpoint = checkpoint_of(name, tmp_path / "tiny")
    pixels = pixels_for(checkpoint, 3)
    merging = bool(checkpoint.plan.merge)  # pairs that are alike to rounding may merge otherwise
    plain = replace(checkpoint, plan=replace(checkpoint.plan, merge=()))
    spans = calibrated(plain, pixels).plan.activations
    network = read_network(replace(checkpoint, plan=replace(checkpoint.plan, activations=spans)))
    found = on_cpu(network, "int8").forward(pixels)
    assert 1e-6 < error(found, exact_logits(checkpoint, pixels)) < (0.6 if merging else 0.1)


@pytest.mark.parametrize("format", [name for name, entry in FORMATS.items() if not entry.plain])
def test_every_quantized_format_is_expanded(tmp_path: Path, format: str) -> None:
    packed = quantize(tiny_checkpoint(tmp_path / "parent"), format, tmp_path / format)
    checkpoint = calibrated(packed, tiny_pixels())
    exact = exact_logits(checkpoint, tiny_pixels())
    assert error(on_cpu(read_network(checkpoint), "int8").forward(tiny_pixels()), exact) < 0.15
    assert error(on_cpu(read_network(checkpoint), "bf16").forward(tiny_pixels()), exact) < 0.05


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_of_any_size_is_its_images(tmp_path: Path, threads: int) -> None:
    network = read_network(tiny_checkpoint(tmp_path / "tiny"))
    engine = on_cpu(network, "fp32", threads)
    pixels = tiny_pixels(2 * WIDE + 7)
    single = torch.cat([engine.forward(image[None]) for image in pixels])
    for count in (1, 3, WIDE, WIDE + 5, len(pixels)):
        torch.testing.assert_close(engine.forward(pixels[:count]), single[:count], rtol=1e-4, atol=1e-5)
    report = engine.report()
    assert report["threads"] == threads and report["compiled_batches"] == [1, WIDE]


def test_streams_share_a_batch_and_keep_its_order(tmp_path: Path) -> None:
    network = read_network(tiny_checkpoint(tmp_path / "tiny"))
    engine, one = on_cpu(network, "fp32", 9), on_cpu(network, "fp32", 1)
    assert engine.streams == 2 and one.streams == 1
    pixels = tiny_pixels(5 * WIDE - 1)
    torch.testing.assert_close(engine.forward(pixels), one.forward(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", range(26))
def test_portions_cover_each_image_once(count: int) -> None:
    parts = portions(count)
    assert [index for start, stop, _ in parts for index in range(start, stop)] == list(range(count))
    assert all(stop - start <= batch and batch in (1, WIDE) for start, stop, batch in parts)


def test_extreme_inputs_give_finite_answers(tmp_path: Path) -> None:
    checkpoint = calibrated(tiny_checkpoint(tmp_path / "tiny"), tiny_pixels())
    for compute in ("fp32", "bf16", "int8"):
        engine = on_cpu(read_network(checkpoint), compute)
        for value in (0, 255):
            assert engine.forward(torch.full((1, 3, 32, 32), value, dtype=torch.uint8)).isfinite().all()


def test_layers_without_a_range_stay_plain(tmp_path: Path) -> None:
    checkpoint = calibrated(tiny_checkpoint(tmp_path / "tiny"), tiny_pixels())
    spans = {name: span for name, span in checkpoint.plan.activations.items() if name.endswith("fc1")}
    some = on_cpu(read_network(replace(checkpoint, plan=replace(checkpoint.plan, activations=spans))), "int8")
    assert some.scales == "static in 2 of 8 products, the others are plain"
    whole = on_cpu(read_network(checkpoint), "int8")
    assert whole.scales == "static" and on_cpu(read_network(checkpoint), "bf16").scales is None
    exact = exact_logits(checkpoint, tiny_pixels())
    assert error(some.forward(tiny_pixels()), exact) < error(whole.forward(tiny_pixels()), exact) < 0.1


def test_a_range_of_nothing_and_one_off_zero_are_borne(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    network = read_network(checkpoint)
    exact = exact_logits(checkpoint, tiny_pixels())

    def spanned(low: float, high: float) -> Network:
        blocks = tuple(replace(block, fc2=replace(block.fc2, span=(low, high))) for block in network.blocks)
        return replace(network, blocks=blocks)

    assert on_cpu(spanned(0.0, 0.0), "int8").forward(tiny_pixels()).isfinite().all()
    assert error(on_cpu(spanned(0.5, 4.0), "int8").forward(tiny_pixels()), exact) < 1.0


def test_without_vnni_weights_have_7_bits(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    weight[3] = 0
    whole, steps = quantized_rows(weight)
    assert np.abs(whole).max(axis=1).tolist() == [127, 127, 127, 0, 127]
    assert np.abs(whole * steps - weight).max() <= steps.max() / 2 * 1.001
    assert np.abs(quantized_rows(weight, 63)[0]).max() == 63

    checkpoint = calibrated(tiny_checkpoint(tmp_path / "tiny"), tiny_pixels())
    old = replace(this_processor(), int8="AVX2", bf16="", reduced=True)
    engine = on_cpu(read_network(checkpoint), "int8", processor=old)
    assert engine.report()["reduced_range"] and engine.plain == "fp32"
    assert 1e-6 < error(engine.forward(tiny_pixels()), exact_logits(checkpoint, tiny_pixels())) < 0.2


def test_no_threads_and_no_ranges_are_refused(tmp_path: Path) -> None:
    network = read_network(tiny_checkpoint(tmp_path / "tiny"))
    with pytest.raises(PetaliteError, match="threads must be at least 1, got 0"):
        on_cpu(network, "fp32", 0)
    with pytest.raises(PetaliteError, match="needs the ranges of the products' inputs"):
        on_cpu(network, "int8")
