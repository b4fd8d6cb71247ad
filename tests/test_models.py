"""Which architectures are taken, and what a configuration may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from petalite import models
from petalite.checkpoint import read_checkpoint
from petalite.engine import load
from petalite.errors import PetaliteError
from tests.tiny import tiny_checkpoint, tiny_pixels


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "vit_large_patch16_224", "deit_small_patch16_224", "deit_tiny_distilled_patch16_224"],
)
def test_supported_models_are_built_without_memory(name: str) -> None:
    model = models.build({"architecture": name, "num_classes": 7, "pretrained_cfg": {}})
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    depth = len(model.blocks)  # type: ignore[arg-type]
    heads = ["head", "head_dist"] if "distilled" in name else ["head"]
    assert models.layers(model) == [
        "patch_embed.proj",
        *(f"blocks.{n}.{part}" for n in range(depth) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
        *heads,
    ]


@pytest.mark.parametrize("name", ["vit_relpos_small_patch16_224", "vit_small_patch16_rope_224"])
def test_other_blocks_are_refused_with_what_is_supported(name: str) -> None:
    with pytest.raises(PetaliteError, match=r"not supported; supported: timm's vit_\* and deit\*"):
        models.build({"architecture": name, "num_classes": 7})


def test_an_unknown_name_is_given_the_nearest() -> None:
    with pytest.raises(PetaliteError, match=r"did you mean 'vit_tiny_patch16_224'"):
        models.create("vit_tiny_patch16_225", pretrained=False)


@pytest.mark.parametrize(
    "arguments", [{"checkpoint_path": "x.pth"}, {"depth": 10_000_000}, {"embed_dim": -1}, {"img_size": [32, 10**9]}]
)
def test_a_hostile_configuration_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(PetaliteError, match=r"config\.json: model_args"):
        models.build({"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": arguments})


def test_a_distilled_deit_goes_all_the_way(tmp_path: Path) -> None:
    from petalite.checkpoint import write_checkpoint
    from petalite.plan import Plan
    from petalite.quantization import quantize

    config, tensors = models.create(
        "deit_tiny_distilled_patch16_224", pretrained=False, classes=("a", "b"), image_size=32,
        model_args={"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2},
    )  # fmt: skip
    plan = Plan("fp32", dict.fromkeys(models.layers(models.build(config)), "fp32"), "fp32")
    base = write_checkpoint(tmp_path / "fp32", config, tensors, plan)
    child = quantize(base, "int8", tmp_path / "int8")
    assert child.plan.layers["head_dist"] == "bf16"
    assert load(child.path, "cpu").logits(tiny_pixels()).shape == (4, 2)


def test_timm_and_petalite_agree_also_at_another_size(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    config, tensors = models.adapt(dict(checkpoint.config), dict(checkpoint.tensors), image_size=48)
    reference = timm.create_model(f"local-dir:{checkpoint.path}", pretrained=True, img_size=48)
    torch.testing.assert_close(tensors["pos_embed"], reference.pos_embed.detach())
    assert config["model_args"]["img_size"] == 48


def test_new_labels_make_a_new_head_and_the_same_ones_do_not(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    read = read_checkpoint(checkpoint.path)
    _, same = models.adapt(dict(read.config), dict(read.tensors), classes=read.classes)
    assert torch.equal(same["head.weight"], read.tensors["head.weight"])
    config, new = models.adapt(dict(read.config), dict(read.tensors), classes=("x", "y"))
    assert new["head.weight"].shape == (2, 64)
    assert config["label_names"] == ["x", "y"]
