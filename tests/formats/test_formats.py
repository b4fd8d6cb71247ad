"""Every registered format goes through the same checks: nothing is tested by name that a new format would not get."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from petalite import models
from petalite.checkpoint import Checkpoint, read_checkpoint, read_tensors
from petalite.engine import load
from petalite.errors import PetaliteError
from petalite.files import disk_bytes
from petalite.formats import FORMATS, get_format
from petalite.formats.plain import DTYPES
from petalite.quantization import quantize
from tests.tiny import tiny_checkpoint, tiny_pixels

PACKED = [name for name, format in FORMATS.items() if not format.plain]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("parent") / "fp32", embed_dim=128, depth=3)


@pytest.fixture(scope="module")
def children(parent: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("children")
    return {name: quantize(parent, name, folder / name).path for name in FORMATS}


def test_the_reference_study_s_formats_are_there() -> None:
    assert {"fp32", "fp16", "bf16", "nf4", "int8"} <= set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(1, 64), (10, 192), (96, 32), (577, 129)])
def test_unpacking_gives_the_weight_back_within_the_stated_error(name: str, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    format = get_format(name)
    restored = format.unpack(format.pack(weight))
    assert restored.shape == weight.shape
    assert restored.dtype == torch.float32
    assert ((restored - weight).norm() / weight.norm()).item() <= format.error


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [0.0, 1e-6, 3.0, 100.0])
def test_constant_weights_survive(name: str, value: float) -> None:
    weight = torch.full((32, 64), value)
    format = get_format(name)
    restored = format.unpack(format.pack(weight))
    assert torch.isfinite(restored).all()
    assert (restored - weight).abs().max() <= max(format.error * value, 1e-6)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(name: str, value: float) -> None:
    weight = torch.zeros(8, 64)
    weight[3, 5] = value
    with pytest.raises(PetaliteError, match="NaN or infinity"):
        get_format(name).pack(weight)


@pytest.mark.parametrize("name", FORMATS)
def test_the_stated_bits_are_the_bits_on_disk(name: str) -> None:
    weight = torch.randn(1024, 1024)
    packed = get_format(name).pack(weight)
    bits = 8 * sum(tensor.numel() * tensor.element_size() for tensor in packed.values()) / weight.numel()
    assert bits == pytest.approx(get_format(name).bits, rel=0.01)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (10, 64), (96, 96), (3, 40)])
def test_the_module_multiplies_with_the_unpacked_weight(name: str, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(rows, columns, generator=generator), torch.randn(rows, generator=generator)
    inputs = torch.randn(5, 7, columns, generator=generator)
    format = get_format(name)
    packed = format.pack(weight)
    module = format.build(packed, bias, torch.float32, torch.device("cpu")).eval()
    with torch.inference_mode():
        outputs = module(inputs)
    exact = inputs.double() @ format.unpack(packed).double().T + bias.double()
    # LLM.int8 also quantizes its input, row by row; bitsandbytes' CPU kernel for nf4 multiplies in bf16 whatever is asked
    bound = {"int8": 0.02, "nf4": 0.005}.get(name, 1e-5)
    assert ((outputs.double() - exact).norm() / exact.norm()).item() < bound


@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_reloads_with_bit_equal_logits(children: dict[str, Path], name: str) -> None:
    first, second = load(children[name], "cpu"), load(children[name], "cpu")
    assert torch.equal(first.logits(tiny_pixels()), second.logits(tiny_pixels()))


@pytest.mark.parametrize("name", FORMATS)
def test_a_forward_pass_changes_nothing_that_could_be_saved(children: dict[str, Path], name: str) -> None:
    """bitsandbytes repacks a 4-bit layer in place at its first pass on some processors."""
    checkpoint = read_checkpoint(children[name])
    before = {key: tensor.clone() for key, tensor in checkpoint.tensors.items()}
    load(checkpoint, "cpu").logits(tiny_pixels())
    assert all(torch.equal(before[key], tensor) for key, tensor in checkpoint.tensors.items())


@pytest.mark.parametrize("name", FORMATS)
def test_logits_stay_near_the_parent_s(parent: Checkpoint, children: dict[str, Path], name: str) -> None:
    exact = load(parent, "cpu").logits(tiny_pixels())
    logits = load(children[name], "cpu", compute="fp32").logits(tiny_pixels())
    # each block adds its layers' error; the rest of the model stands in 16 bits
    assert ((logits - exact).norm() / exact.norm()).item() <= 6 * FORMATS[name].error + 1e-6


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "fp32"])
def test_a_checkpoint_is_smaller_than_its_parent(parent: Checkpoint, children: dict[str, Path], name: str) -> None:
    # small models carry norms, embeddings and a head beside the packed weights
    assert disk_bytes(children[name] / "model.safetensors") < (0.25 + FORMATS[name].bits / 32) * disk_bytes(
        parent.path / "model.safetensors"
    )


@pytest.mark.parametrize("name", PACKED)
def test_the_head_and_the_patch_embedding_stay_plain(children: dict[str, Path], name: str) -> None:
    checkpoint = read_checkpoint(children[name])
    rest = FORMATS[name].rest
    assert checkpoint.plan.layers["head"] == checkpoint.plan.layers["patch_embed.proj"] == rest
    assert checkpoint.tensors["head.weight"].dtype == DTYPES[rest]


@pytest.mark.parametrize("name", PACKED)
def test_kept_layers_stay_plain_and_the_head_can_be_packed(parent: Checkpoint, tmp_path: Path, name: str) -> None:
    child = quantize(parent, name, tmp_path / "child", keep=("first_last", "blocks.1.mlp.fc*"), include_head=True)
    layers = child.plan.layers
    assert {layer for layer, stored in layers.items() if stored == name} == {
        "blocks.1.attn.qkv",
        "blocks.1.attn.proj",
        "head",
    }
    assert torch.isfinite(load(child.path, "cpu").logits(tiny_pixels())).all()


@pytest.mark.parametrize("name", PACKED)
def test_a_quantized_checkpoint_is_not_quantized_again(children: dict[str, Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(PetaliteError, match=f"already quantized \\({name}\\)"):
        quantize(children[name], "nf4", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", PACKED)
def test_a_device_that_cannot_run_it_is_an_error_with_a_reason(name: str) -> None:
    reason = FORMATS[name].missing(torch.device("mps"))
    assert reason is not None
    assert re.search(f"{name} does not run on mps", reason)


@pytest.mark.parametrize("name", FORMATS)
def test_unpacked_tensors_are_those_of_a_plain_model(children: dict[str, Path], name: str) -> None:
    checkpoint = read_checkpoint(children[name])
    plain = checkpoint.plain_tensors()
    assert {key: tuple(tensor.shape) for key, tensor in plain.items()} == {
        key: tuple(tensor.shape) for key, tensor in models.build(checkpoint.config).state_dict().items()
    }


def test_an_unknown_format_is_named_with_the_nearest() -> None:
    with pytest.raises(PetaliteError, match=r"unknown format 'nf5' \(did you mean 'nf4'\?\)"):
        get_format("nf5")


def test_fp16_refuses_what_would_overflow() -> None:
    with pytest.raises(PetaliteError, match="do not fit in fp16"):
        get_format("fp16").pack(torch.full((2, 2), 1e6))


def test_the_parent_s_tensors_are_read_as_they_stand(parent: Checkpoint) -> None:
    assert {name: tensor.dtype for name, tensor in read_tensors(parent.path).items()} == dict.fromkeys(
        parent.tensors, torch.float32
    )
