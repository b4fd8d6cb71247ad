"""Recovery: a quantized checkpoint learns and stays one, and what was validated is what is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from petalite.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from petalite.data import Preprocess
from petalite.engine import load
from petalite.errors import PetaliteError
from petalite.formats import FORMATS
from petalite.plan import Plan
from petalite.quantization import apply_plan, quantize
from petalite.recipe import TrainRecipe
from petalite.straight_through import RoundedLinear
from petalite.training import check_start, methods, train
from petalite.training.recovery import QuantizedStudent
from tests.command import Petalite, petalite  # noqa: F401
from tests.tiny import tiny_checkpoint, tiny_images, tiny_pixels
from tests.training.stopping import stop_training

PACKED = [name for name, format in FORMATS.items() if not format.plain]
CPU = torch.device("cpu")
RECIPE = TrainRecipe(method="qat", epochs=1, batch_size=8, flip=False, augment="none", precision="fp32")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_images(tmp_path_factory.mktemp("images") / "colours")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("parent") / "fp32")


@pytest.fixture(scope="module")
def learned(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A plain checkpoint that knows the images."""
    start = tiny_checkpoint(tmp_path_factory.mktemp("random") / "fp32")
    recipe = dataclasses.replace(RECIPE, method="full", epochs=6, lr=3e-3)
    return train(images, start.path, tmp_path_factory.mktemp("learned"), recipe, device="cpu", workers=0)


def recover(images: Path, start: Checkpoint, out: Path, **changes: Any) -> Checkpoint:
    written = train(images, start.path, out, dataclasses.replace(RECIPE, **changes), device="cpu", workers=0)
    return read_checkpoint(written.path)


def plain_logits(checkpoint: Checkpoint) -> Tensor:
    """Logits of the weights that the checkpoint's tensors stand for, in float32."""
    model = checkpoint.skeleton()
    model.load_state_dict(checkpoint.plain_tensors(), assign=True)
    return logits_of(model, checkpoint)


@torch.no_grad()
def logits_of(model: nn.Module, checkpoint: Checkpoint) -> Tensor:
    logits: Tensor = model.eval()(Preprocess.from_config(checkpoint.config).normalize(tiny_pixels()))
    return logits


def shapes(checkpoint: Checkpoint) -> dict[str, tuple[torch.dtype, torch.Size]]:
    # bitsandbytes describes a weight in JSON, whose length changes with the digits of a number
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if "quant_state" not in name}
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def top1(out: Path) -> list[float]:
    rows = (out / "train" / "metrics.csv").read_text().splitlines()
    return [float(row.split(",")[5]) for row in rows[1:]]


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "qat") for name in PACKED), *((name, "qlora") for name in ("int2", "fp8", "nf4", "int8"))],
)
def test_what_learns_is_what_is_written(parent: Checkpoint, tmp_path: Path, name: str, method: str) -> None:
    start = quantize(parent, name, tmp_path / "start", include_head=method == "qat")
    student = QuantizedStudent(start, dataclasses.replace(RECIPE, method=method), CPU)
    torch.testing.assert_close(logits_of(student.model, start), plain_logits(start), rtol=1e-4, atol=1e-5)

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in methods.trainable(student.model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    student.settle()
    for layer in (layer for layer in student.layers.values() if isinstance(layer, RoundedLinear)):
        assert method == "qlora" or 0 <= layer.code.min() <= layer.code.max() <= layer.grid.highest
    expected = logits_of(student.model, start)
    assert not torch.allclose(expected, plain_logits(start), atol=1e-2)

    tensors, plan = student.finished(methods.trainable(student.model))
    write_checkpoint(tmp_path / "end", start.config, tensors, plan)
    end = read_checkpoint(tmp_path / "end")
    assert end.plan == start.plan
    assert shapes(end) == shapes(start)
    torch.testing.assert_close(plain_logits(end), expected, rtol=1e-4, atol=1e-5)
    if FORMATS[name].package is None:  # bitsandbytes' products round more than the weights
        loaded = load(end, device="cpu", compute="fp32").logits(tiny_pixels())
        torch.testing.assert_close(loaded, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "method"), [("int2", "qat"), ("int2", "qlora"), ("nf4", "qlora")])
def test_accuracy_comes_back(images: Path, learned: Checkpoint, tmp_path: Path, name: str, method: str) -> None:
    start = quantize(learned, name, tmp_path / "start")
    end = recover(images, start, tmp_path / "out", method=method, epochs=8, teacher=str(learned.path), lr=5e-3)
    assert end.path == tmp_path / "out" / "checkpoints" / name
    assert end.plan == start.plan
    assert shapes(end) == shapes(start)
    assert max(top1(tmp_path / "out")) > 0.9
    card = (end.path / "README.md").read_text()
    assert f"| training | {method}, 8 epochs |" in card
    assert "| recovered from | start, validation top-1 " in card
    assert "| teacher | fp32 (fp32) |" in card


def test_the_start_is_the_result_where_training_makes_it_worse(
    images: Path, learned: Checkpoint, tmp_path: Path
) -> None:
    start = quantize(learned, "int4", tmp_path / "start")
    end = recover(images, start, tmp_path / "out", lr=0.5)
    assert max(top1(tmp_path / "out")) < 0.9
    torch.testing.assert_close(plain_logits(end), plain_logits(start), rtol=1e-4, atol=1e-5)


def test_qlora_learns_low_rank_matrices_and_the_head_alone(parent: Checkpoint, tmp_path: Path) -> None:
    start = quantize(parent, "int3", tmp_path / "start", keep=["blocks.0.mlp.fc1"])
    student = QuantizedStudent(start, dataclasses.replace(RECIPE, method="qlora", targets=("qkv", "fc1")), CPU)
    learning = {name.split(".parametrizations")[0] for name in methods.trainable(student.model)}
    assert learning == {"head", "blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.1.mlp.fc1"}
    tensors, _ = student.finished(methods.trainable(student.model))
    changed = {name for name in tensors if not torch.equal(tensors[name], start.tensors[name])}
    assert not changed - {f"{name}.second" for name in start.packed}  # ranges of scales, to the last bit


def test_packed_edges_keep_their_values_and_the_head_learns(images: Path, parent: Checkpoint, tmp_path: Path) -> None:
    start = quantize(parent, "int4", tmp_path / "start", edges="int8-channel")
    end = recover(images, start, tmp_path / "out", lr=0.02)
    assert end.plan == start.plan
    same = {name for name in start.tensors if torch.equal(start.tensors[name], end.tensors[name])}
    assert {"pos_embed.weight", "pos_embed.scale", "patch_embed.proj.weight", "patch_embed.proj.second"} <= same
    assert not same & {"head.weight", "head.bias", "cls_token", "patch_embed.proj.bias", "blocks.0.norm1.weight"}


def test_token_merging_and_the_ranges_of_inputs_go_along(images: Path, parent: Checkpoint, tmp_path: Path) -> None:
    layers = [name for name in parent.plan.layers if name != "patch_embed.proj"]
    plan = Plan("int4", dict.fromkeys(layers, "int4"), "bf16", (4, 2), dict.fromkeys(layers, (-1.0, 1.0)))
    start = apply_plan(parent, plan, tmp_path / "start")
    end = recover(images, start, tmp_path / "out", teacher=str(start.path), checkpointing=True)
    assert (end.plan.layers, end.plan.merge) == (start.plan.layers, (4, 2))
    assert end.plan.activations.keys() == start.plan.activations.keys()
    assert (-1.0, 1.0) not in end.plan.activations.values()
    assert load(end, device="cpu").info.merged_tokens == 6


@pytest.mark.parametrize(("name", "method"), [("int3", "qat"), ("int3-g128-sym", "qlora"), ("nf4", "qat")])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_stops_ends_with_the_same_weights(
    images: Path, parent: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: str, stop: int
) -> None:
    start = quantize(parent, name, tmp_path / "start")
    options: dict[str, Any] = {"method": method, "epochs": 2, "save_minutes": 0.0, "teacher": str(parent.path)}
    whole = recover(images, start, tmp_path / "whole", **options)
    stop_training(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        recover(images, start, tmp_path / "parts", **options)
    monkeypatch.undo()
    resumed = recover(images, start, tmp_path / "parts", **options)
    assert [key for key in whole.tensors if not torch.equal(whole.tensors[key], resumed.tensors[key])] == []


def test_what_cannot_start_says_why(images: Path, parent: Checkpoint, tmp_path: Path) -> None:
    start = quantize(parent, "int4", tmp_path / "start")
    others = tiny_images(tmp_path / "others", classes=("a", "b"))
    small = tiny_checkpoint(tmp_path / "small", classes=("a", "b"))
    for method in ("lora", "full", "head"):
        with pytest.raises(
            PetaliteError, match=r"is quantized \(int4\); use `petalite train` with --method qlora or qat, or start"
        ):
            recover(images, start, tmp_path / "out", method=method)
    with pytest.raises(PetaliteError, match=r"qat starts from a quantized checkpoint, .* is plain"):
        check_start(parent.path, method="qat")
    with pytest.raises(PetaliteError, match="knows 3 classes, and recovery keeps its head; the images have 2"):
        recover(others, start, tmp_path / "out")
    with pytest.raises(
        PetaliteError, match=r"the teacher .* knows 2 classes, the student 3; both have to know the same"
    ):
        recover(images, start, tmp_path / "out", teacher=str(small.path))
    with pytest.raises(PetaliteError, match="where dropout has no place"):
        recover(images, start, tmp_path / "out", dropout=0.1)
    with pytest.raises(PetaliteError, match="its shape and image size are fixed"):
        train(images, start.path, tmp_path / "out", RECIPE, image_size=48, device="cpu", workers=0)
    assert not (tmp_path / "out").exists()


def test_a_teacher_teaches_plain_training_too(
    images: Path, learned: Checkpoint, parent: Checkpoint, tmp_path: Path
) -> None:
    alone = recover(images, parent, tmp_path / "alone", method="full", lr=3e-3)
    taught = recover(images, parent, tmp_path / "taught", method="full", lr=3e-3, teacher=str(learned.path))
    assert taught.plan.format == "fp32"
    assert not torch.equal(alone.tensors["head.weight"], taught.tensors["head.weight"])


def test_the_command_line(petalite: Petalite, images: Path, parent: Checkpoint, tmp_path: Path) -> None:  # noqa: F811
    quantize(parent, "int3-g128-sym", tmp_path / "start")
    common = ("train", "--data", images, "--out", tmp_path / "out", "--epochs", 1, "--device", "cpu", "--method", "qat")
    assert petalite(*common, "--model", parent.path).error.startswith("qat starts from a quantized checkpoint")
    assert "does not exist" in petalite(*common, "--model", tmp_path / "start", "--teacher", tmp_path / "none").error
    assert not (tmp_path / "out").exists()
    done = petalite(*common, "--model", tmp_path / "start", "--teacher", parent.path)
    assert (done.code, done.out.strip()) == (0, str(tmp_path / "out" / "checkpoints" / "int3-g128-sym"))
    assert "start: valid loss" in done.err
