"""The fused forward pass against timm's model in float64: on a GPU where there is one, else by Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from petalite.attention import BACKENDS
from petalite.checkpoint import Checkpoint
from petalite.data import Preprocess
from petalite.device import COMPUTES, capability_of, unavailable_compute
from petalite.engine import cuda
from petalite.engine.choice import plain_dtype
from petalite.engine.cuda import OWN_ATTENTION, Fused
from petalite.engine.kernels import Launch, norm, power_of_two
from petalite.engine.kernels import quantize as quantize_kernel
from petalite.engine.trial import Trials, time_on_cpu
from petalite.engine.weights import Network, read_network
from petalite.errors import PetaliteError
from petalite.formats import FORMATS
from petalite.quantization import quantize
from tests.engine.kernels.conftest import _rounding_of_a_gpu, device
from tests.engine.networks import MODELS, checkpoint_of, exact_logits, pixels_for, random_checkpoint
from tests.tiny import tiny_checkpoint, tiny_pixels

__all__ = ["_rounding_of_a_gpu", "device"]
#: Relative error of the logits, ‖found − exact‖ / ‖exact‖, that a precision may cause in these models.
BOUNDS = {"fp32": 2e-6, "fp16": 0.005, "bf16": 0.03, "int8": 0.05, "fp8": 0.16}


@pytest.fixture(autouse=True)
def _interpreted(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one program after the other, so let each take many rows; and it multiplies the bits of
    bfloat16 as whole numbers, so let it have float32."""
    if device.type != "cpu":
        return
    for kernel in (norm, quantize_kernel):
        monkeypatch.setattr(kernel, "row_launch", lambda rows, columns: Launch(64, power_of_two(columns), 1))
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original(self, *(widened(x) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)), *rest)

    def widened(x: Any) -> Any:
        values = torch.from_numpy(x.data.view(np.int16).copy()).view(torch.bfloat16).float().numpy()
        return interpreter.TensorHandle(values, tl.float32)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def engine(source: Checkpoint | Network, compute: str, device: torch.device, attention: str = "auto") -> Fused:
    if (reason := unavailable_compute(compute, capability_of(device), device.type)) and device.type != "cpu":
        pytest.skip(reason)
    network = source if isinstance(source, Network) else read_network(source)
    return Fused(network, device, compute, attention, Trials(None, time_on_cpu))


def error(found: Tensor, exact: Tensor) -> float:
    assert found.dtype == torch.float32 and found.shape == exact.shape
    return float((found.double().cpu() - exact).norm() / exact.norm())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("models")
    return {name: checkpoint_of(name, folder / str(index)) for index, name in enumerate([*MODELS, "distilled"])}


@pytest.mark.parametrize(
    ("name", "compute"),
    [(name, compute) for name in [*MODELS, "distilled"] for compute in ("fp32", "bf16", "int8", "fp8")]
    + [("class token", "fp16"), ("merging, mean, registers", "fp16")],
)
def test_it_answers_as_the_model_does(
    models: dict[str, Checkpoint], name: str, compute: str, device: torch.device
) -> None:
    checkpoint = models[name]
    pixels = pixels_for(checkpoint, 3)
    fused = engine(checkpoint, compute, device)
    logits = fused(pixels.to(device))
    # which tokens merge may hang on a rounding
    bound = BOUNDS[compute] * (2 if checkpoint.plan.merge else 1)
    assert error(logits, exact_logits(checkpoint, pixels)) < bound
    normalized = Preprocess.from_config(checkpoint.config).normalize(pixels).to(device)
    # what differs is where the patch embedding's weights and the pixels are rounded
    assert error(fused(normalized), logits.double().cpu()) < bound


@pytest.mark.parametrize("compute", ["bf16", "fp8"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_image_s_answer_does_not_depend_on_the_others(
    models: dict[str, Checkpoint], compute: str, count: int, device: torch.device
) -> None:
    checkpoint = models["merging"]
    fused = engine(checkpoint, compute, device)
    pixels = pixels_for(checkpoint, 5).to(device)
    together = fused(pixels)[:count].double().cpu()
    assert error(fused(pixels[:count]), together) < (1e-6 if device.type == "cpu" else 0.02)


@pytest.mark.parametrize("compute", ["bf16", "int8", "fp8"])
@pytest.mark.parametrize("name", ["merging", "merging, mean, registers"])
def test_where_merging_s_kernels_do_not_fit_operators_merge(
    models: dict[str, Checkpoint], name: str, compute: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from petalite.engine.kernels import merging

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the kernel was asked")

    monkeypatch.setattr(merging, "shared_bytes", lambda _: 1024)
    for kernel in ("match", "merge"):
        monkeypatch.setattr(merging, kernel, refused)
    checkpoint = models[name]
    pixels = pixels_for(checkpoint, 3)
    logits = engine(checkpoint, compute, device)(pixels.to(device))
    assert error(logits, exact_logits(checkpoint, pixels)) < 2 * BOUNDS[compute]


@pytest.mark.parametrize("name", [*BACKENDS, OWN_ATTENTION])
@pytest.mark.parametrize("model", ["class token", "merging, mean, registers"])
def test_every_attention_gives_the_same_answers(
    models: dict[str, Checkpoint], model: str, name: str, device: torch.device
) -> None:
    checkpoint = models[model]
    plain = plain_dtype("bf16", capability_of(device))
    if name in BACKENDS and (reason := BACKENDS[name].unavailable(device, plain)):
        with pytest.raises(PetaliteError, match=name):
            engine(checkpoint, "bf16", device, name)
        pytest.skip(reason)
    fused = engine(checkpoint, "bf16", device, name)
    assert fused.attention == fused.report()["attention"] == name
    pixels = pixels_for(checkpoint, 3)
    assert error(fused(pixels.to(device)), exact_logits(checkpoint, pixels)) < BOUNDS["bf16"]


@pytest.mark.parametrize(
    ("arguments", "attention", "says"),
    [
        ({}, "fa3", r"unknown attention 'fa3' \(did you mean 'fa2'\?\); known: auto, petalite, cudnn"),
        ({"num_heads": 8}, OWN_ATTENTION, "attention petalite takes heads of 16 to 128 channels, .* not 8; use"),
        ({"img_size": 264}, OWN_ATTENTION, "attention petalite takes up to 1024 tokens, not 1090; use"),
    ],
)
def test_attention_that_cannot_run_is_refused(
    tmp_path: Path, arguments: dict[str, Any], attention: str, says: str, device: torch.device
) -> None:
    checkpoint = random_checkpoint(tmp_path / "tiny", **arguments)
    with pytest.raises(PetaliteError, match=says):
        engine(checkpoint, "bf16", device, attention)
    assert not arguments or engine(checkpoint, "bf16", device).attention in BACKENDS


def calibrated(checkpoint: Checkpoint, spans: tuple[tuple[float, float], tuple[float, float]]) -> Checkpoint:
    """With ranges for what attention and GELU give, in every block but the first's MLP."""
    ranges = {f"blocks.{block}.attn.proj": spans[0] for block in range(2)} | {"blocks.1.mlp.fc2": spans[1]}
    ranges |= {"blocks.0.attn.qkv": (-1e-3, 1e-3)}  # of a norm's output no static scale is made
    return replace(checkpoint, plan=replace(checkpoint.plan, activations=ranges))


@pytest.mark.parametrize("compute", ["int8", "fp8"])
@pytest.mark.parametrize("attention", [OWN_ATTENTION, "sdpa"])
@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_calibrated_ranges_give_one_scale_behind_attention_and_gelu(
    tmp_path: Path, compute: str, attention: str, pooling: str, device: torch.device
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny", global_pool=pooling)
    fused = engine(calibrated(checkpoint, ((-2.0, 2.5), (-0.17, 4.0))), compute, device, attention)
    said = {"int8": "static for 2 of 8 products, per token elsewhere",
            "fp8": "static, from bounds of the weights and calibrated ranges"}  # fmt: skip
    assert fused.scales == said[compute]
    assert (fused._blocks[0].qkv.step is None) == (fused._blocks[1].fc2.step is None) == (compute == "int8")
    pixels = tiny_pixels(3)
    expected = exact_logits(checkpoint, pixels)
    assert error(fused(pixels.to(device)), expected) < BOUNDS[compute]
    # ranges that cut nearly everything off are felt: they are what is used
    narrow = engine(calibrated(checkpoint, ((-1e-4, 1e-4), (-1e-4, 1e-4))), compute, device, attention)
    assert error(narrow(pixels.to(device)), expected) > 2 * BOUNDS[compute]


def test_it_says_how_inputs_get_their_scales(models: dict[str, Checkpoint], device: torch.device) -> None:
    checkpoint = models["class token"]
    assert engine(checkpoint, "bf16", device).scales is None
    assert engine(checkpoint, "int8", device).scales == "per token"
    every = {f"blocks.{block}.{layer}": (-1.0, 1.0) for block in range(2) for layer in ("attn.proj", "mlp.fc2")}
    checkpoint = replace(checkpoint, plan=replace(checkpoint.plan, activations=every))
    assert engine(checkpoint, "int8", device).scales == "static for 2 of 8 products, per token elsewhere"
    assert engine(checkpoint, "fp8", device).scales == "static, from bounds of the weights and calibrated ranges"
    network = read_network(models["class token"])
    assert (
        Fused(network, device, "fp8", trials=Trials(None, time_on_cpu)).scales == "static, from bounds of the weights"
    )
    assert Fused(network, device, "fp8", trials=Trials(None, time_on_cpu), scales="token").scales == "per token"
    with pytest.raises(PetaliteError, match=r"unknown scales 'tokens' .did you mean 'token'"):
        Fused(network, device, "fp8", scales="tokens")


@pytest.mark.parametrize("format", [name for name in FORMATS if name in ("nf4", "int8", "int8-channel", "int4", "fp8")])
def test_whatever_a_checkpoint_is_packed_as_runs_in_eight_bits(
    tmp_path: Path, format: str, device: torch.device
) -> None:
    parent = tiny_checkpoint(tmp_path / "parent", init_values=0.3)
    packed = quantize(parent, format, tmp_path / "packed")
    pixels = tiny_pixels(3)
    expected = exact_logits(packed, pixels)
    for compute in ("int8", "fp8"):
        assert error(engine(packed, compute, device)(pixels.to(device)), expected) < BOUNDS[compute]


@pytest.mark.parametrize("compute", COMPUTES)
def test_extreme_weights_give_finite_answers_that_are_near(tmp_path: Path, compute: str, device: torch.device) -> None:
    """Outlier channels, dead channels, a head of zeros, rows of all sizes, as large models have them."""
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    tensors["blocks.0.mlp.fc2.weight"][5] *= 300  # one channel of the residual stream
    tensors["blocks.0.mlp.fc1.weight"][7] *= 100
    tensors["blocks.0.norm1.weight"][:8] = 0
    tensors["blocks.1.attn.qkv.weight"][:64] *= 8  # sharp attention
    tensors["blocks.1.attn.proj.weight"][3] = 0
    tensors["blocks.1.mlp.fc1.bias"][11] = -200
    tensors["blocks.1.norm2.bias"][2] = 50
    tensors["head.weight"][0] = 0
    checkpoint = replace(checkpoint, tensors=tensors)
    logits = engine(checkpoint, compute, device)(tiny_pixels(3).to(device))
    assert torch.isfinite(logits).all()
    assert error(logits, exact_logits(checkpoint, tiny_pixels(3))) < 3 * BOUNDS[compute]
    assert torch.equal(logits[:, 0].cpu(), checkpoint.tensors["head.bias"][0].expand(3))


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("value", [0, 255])
def test_images_of_one_colour_are_images_too(
    models: dict[str, Checkpoint], compute: str, value: int, device: torch.device
) -> None:
    pixels = torch.full((2, 3, 32, 32), value, dtype=torch.uint8)
    logits = engine(models["class token"], compute, device)(pixels.to(device))
    assert error(logits, exact_logits(models["class token"], pixels)) < BOUNDS[compute]


def test_weights_of_zeros_give_the_head_s_bias(tmp_path: Path, device: torch.device) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    tensors = {
        name: torch.zeros_like(tensor) if name.startswith("blocks") else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    for compute in COMPUTES:
        fused = engine(replace(checkpoint, tensors=tensors), compute, device)
        expected = exact_logits(replace(checkpoint, tensors=tensors), tiny_pixels(2))
        assert error(fused(tiny_pixels(2).to(device)), expected) < BOUNDS[compute]


def test_what_is_left_at_the_edges_is_not_seen(models: dict[str, Checkpoint], device: torch.device) -> None:
    """A network for images of 32 x 32 with room at the right and below, as a convolution's stride leaves it."""
    network = read_network(models["class token"])
    roomy = replace(network, shape=replace(network.shape, image_size=(37, 35)))
    pixels = torch.randint(0, 256, (2, 3, 37, 35), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    cut = pixels[:, :, :32, :32].contiguous()
    assert torch.equal(
        engine(roomy, "bf16", device)(pixels.to(device)), engine(network, "bf16", device)(cut.to(device))
    )


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_rows_of_each_image_come_with_their_scales(count: int) -> None:
    values, scale = torch.arange(30.0).view(15, 2), torch.arange(15.0)  # 3 images of 5 tokens
    first, theirs = cuda._first_rows((values, scale), 3, count)
    wanted = [5 * image + token for image in range(3) for token in range(count)]
    assert theirs is not None and theirs.tolist() == wanted and theirs.is_contiguous()
    assert first[:, 0].tolist() == [2.0 * row for row in wanted] and first.is_contiguous()
    assert cuda._first_rows((values, None), 3, count)[1] is None


def test_only_the_head_s_tokens_are_computed_in_the_last_block(
    models: dict[str, Checkpoint], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = engine(models["class token"], "bf16", device)
    rows = []
    multiply = fused.products.multiply
    monkeypatch.setattr(
        fused.products,
        "multiply",
        lambda a, layer: rows.append((layer.name, a[0].shape[0], len(layer.weight))) or multiply(a, layer),
    )
    fused(tiny_pixels(3).to(device))
    assert rows[4:] == [
        ("blocks.1.attn.qkv", 51, 128), ("blocks.1.attn.qkv", 3, 64), ("blocks.1.attn.proj", 3, 64),
        ("blocks.1.mlp.fc1", 3, 256), ("blocks.1.mlp.fc2", 3, 64),
    ]  # fmt: skip
