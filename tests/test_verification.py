"""Every way to damage a checkpoint is found, and the line says what was damaged."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from petalite import models
from petalite.checkpoint import WEIGHTS, write_checkpoint
from petalite.plan import Plan
from petalite.quantization import quantize
from petalite.verification import MAX_NAMED, VerifyReport, verify

ARGS = {"img_size": 32, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint in three formats."""
    root = tmp_path_factory.mktemp("checkpoints")
    config, tensors = models.create("vit_tiny_patch16_224", pretrained=False, classes=["a", "b", "c"], model_args=ARGS)
    plan = Plan("fp32", dict.fromkeys(models.layers(models.build(config)), "fp32"), "fp32")
    write_checkpoint(root / "fp32", config, tensors, plan)
    for name in ("nf4", "int8"):
        quantize(root / "fp32", name, root / name)
    return {name: root / name for name in ("fp32", "nf4", "int8")}


@pytest.fixture
def folder(written: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written["nf4"], tmp_path / "nf4"))


@pytest.fixture
def plain(written: dict[str, Path], tmp_path: Path) -> Path:
    """A checkpoint as timm writes it: without the plan and its hashes."""
    copy = Path(shutil.copytree(written["fp32"], tmp_path / "plain"))
    (copy / "plan.json").unlink()
    return copy


def only_error(report: VerifyReport) -> str:
    errors = [finding.text for finding in report.findings if finding.level == "error"]
    assert not report.ok
    assert len(errors) == 1, errors
    return errors[0]


def flip_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def data_offset(weights: Path, tensor: str) -> int:
    """Where a tensor's last byte stands in the file."""
    content = weights.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return 8 + length + json.loads(content[8 : 8 + length])[tensor]["data_offsets"][1] - 1


@pytest.mark.parametrize("name", ["fp32", "nf4", "int8"])
def test_what_was_written_is_ok(name: str, written: dict[str, Path]) -> None:
    report = verify(written[name])
    assert report.ok, report.lines()
    assert report.findings == []
    assert report.lines()[-1].startswith("ok: 2 files, ")
    assert f", plan {name}, 3 classes, preprocessing, " in report.lines()[-1]
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True


@pytest.mark.parametrize(
    "tensor", ["blocks.1.mlp.fc2.weight", "blocks.0.attn.qkv.weight.absmax", "norm.bias", "head.weight", "pos_embed"]
)
def test_a_flipped_bit_is_named_by_its_tensor(tensor: str, folder: Path) -> None:
    flip_bit(folder / WEIGHTS, data_offset(folder / WEIGHTS, tensor))
    assert f"the tensor {tensor} is not what was written" in only_error(verify(folder))


def test_every_bit_of_the_files_counts(folder: Path) -> None:
    """The header, the tensors, the configuration: a flip anywhere is found."""
    originals = {name: (folder / name).read_bytes() for name in (WEIGHTS, "config.json")}
    for name, content in originals.items():
        for offset in range(0, len(content), len(content) // 7):
            flip_bit(folder / name, offset)
            assert not verify(folder).ok, (name, offset)
            (folder / name).write_bytes(content)
    assert verify(folder).ok


def test_a_changed_configuration_is_named(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config["label_names"].reverse())
    assert only_error(verify(folder)).startswith("config.json is not what was written")


def test_a_changed_header_is_told_from_changed_tensors(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"format": "other"})
    assert "its header was changed" in only_error(verify(folder))


def test_many_changed_tensors_are_counted(folder: Path) -> None:
    tensors = {name: tensor + 1 for name, tensor in load_file(folder / WEIGHTS).items() if tensor.is_floating_point()}
    assert len(tensors) > MAX_NAMED
    save_file(tensors | {k: v for k, v in load_file(folder / WEIGHTS).items() if k not in tensors}, folder / WEIGHTS)
    lines = verify(folder).lines()
    assert any(f"and {len(tensors) - MAX_NAMED} more like it" in line for line in lines), lines


def test_a_configuration_cannot_have_other_files_opened(plain: Path) -> None:
    ran, evil = plain / "ran", plain / "evil.pth"
    evil.write_bytes(pickle.dumps(Trap(ran)))
    edit(plain / "config.json", lambda config: config.update(model_args={**ARGS, "checkpoint_path": str(evil)}))
    assert "model_args holds checkpoint_path" in only_error(verify(plain))
    assert not ran.exists()


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["blocks.1.norm2.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = "\n".join(verify(folder).lines())
    assert "the tensor blocks.1.norm2.weight was written, but is missing" in text
    assert "lacks the tensor blocks.1.norm2.weight" in text


def test_a_tensor_missing_without_hashes_is_named(plain: Path) -> None:
    tensors = load_file(plain / WEIGHTS)
    del tensors["cls_token"]
    save_file(tensors, plain / WEIGHTS)
    assert "lacks the tensor cls_token" in only_error(verify(plain))


def test_another_class_count_is_named(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(num_classes=7, label_names=list("abcdefg")))
    assert "the head has 3 classes, but config.json says 7" in "\n".join(verify(folder).lines())


def test_another_class_count_without_hashes_is_named(plain: Path) -> None:
    edit(plain / "config.json", lambda config: config.update(num_classes=7, label_names=list("abcdefg")))
    assert "the head has 3 classes, but config.json says 7" in only_error(verify(plain))


def test_a_plain_folder_of_timm_is_ok_with_a_note(plain: Path) -> None:
    report = verify(plain)
    assert report.ok
    assert [finding.level for finding in report.findings] == ["note"]
    assert "no hashes are recorded" in report.lines()[0]


@pytest.mark.parametrize(("layer", "stated"), [("blocks.0.mlp.fc1", "bf16"), ("head", "nf4"), ("head", "int8")])
def test_a_plan_that_the_tensors_do_not_follow(layer: str, stated: str, folder: Path) -> None:
    edit(folder / "plan.json", lambda plan: plan["layers"].update({layer: stated}))
    report = verify(folder)
    assert not report.ok
    assert any(line.startswith("error: ") and layer in line for line in report.lines()), report.lines()


def test_another_precision_than_the_plan_states(folder: Path) -> None:
    edit(folder / "plan.json", lambda plan: plan["layers"].update(head="fp32"))
    assert only_error(verify(folder)) == "head.weight is stored as bfloat16, plan.json says fp32"
    edit(folder / "plan.json", lambda plan: plan["layers"].pop("head"))
    assert only_error(verify(folder)) == "plan.json does not say how head is stored"


def test_packed_weights_are_unpacked(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["blocks.0.attn.qkv.weight.absmax"]
    save_file(tensors, folder / WEIGHTS)
    assert "the nf4 weight of blocks.0.attn.qkv cannot be read" in "\n".join(verify(folder).lines())


def test_numbers_that_are_not_finite_are_named(plain: Path) -> None:
    tensors = load_file(plain / WEIGHTS)
    tensors["norm.weight"][3] = torch.nan
    save_file(tensors, plain / WEIGHTS)
    assert "norm.weight holds NaN or infinity" in only_error(verify(plain))


def test_missing_preprocessing_is_named(plain: Path) -> None:
    edit(plain / "config.json", lambda config: config.pop("pretrained_cfg"))
    errors = [finding.text for finding in verify(plain).findings if finding.level == "error"]
    assert any("preprocessing" in text for text in errors), errors


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_pickles_are_refused_and_never_opened(folder: Path) -> None:
    weights, ran = folder / WEIGHTS, folder.parent / "ran"
    weights.write_bytes(pickle.dumps(Trap(ran)))
    assert "is a pickle" in "\n".join(verify(folder).lines())
    with zipfile.ZipFile(weights, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap(ran)))
    assert "is a pickle" in "\n".join(verify(folder).lines())
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(ran)))
    assert "pickle file (pytorch_model.bin)" in "\n".join(verify(folder).lines())
    assert not ran.exists()


HOSTILE_WEIGHTS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "a header longer than memory": struct.pack("<Q", 2**63 - 1) + b"{}",
    "a header longer than the file": struct.pack("<Q", 10_000) + b"{}",
    "a header that is not JSON": struct.pack("<Q", 8) + b"not json",
    "a deeply nested header": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "offsets beyond the file": struct.pack("<Q", 64)
    + b'{"x":{"dtype":"F32","shape":[999999],"data_offsets":[0,3999996]}}'.ljust(64)[:64],
    "text": b"this is not a model, whatever its name says\n" * 10,
}


@pytest.mark.parametrize("name", HOSTILE_WEIGHTS)
def test_hostile_weights_are_one_line(name: str, folder: Path, plain: Path) -> None:
    for path in (folder, plain):
        (path / WEIGHTS).write_bytes(HOSTILE_WEIGHTS[name])
        errors = [line for line in verify(path).lines() if line.startswith("error: ")]
        assert errors
        assert all(WEIGHTS in line and "\n" not in line for line in errors)


def test_truncated_weights_are_named(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    for length in (len(content) - 1, len(content) // 2, 100):
        (folder / WEIGHTS).write_bytes(content[:length])
        assert f"{WEIGHTS} is damaged" in "\n".join(verify(folder).lines())


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100_000, '{"architecture": 5}', "\x00\xff"])
@pytest.mark.parametrize("file", ["config.json", "plan.json"])
def test_hostile_json_is_named(file: str, text: str, folder: Path) -> None:
    (folder / file).write_text(text)
    report = verify(folder)
    assert not report.ok
    assert any(file in line for line in report.lines()), report.lines()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architecture": "resnet50"}, "resnet50"),
        ({"num_classes": "many"}, "many"),
        ({"num_classes": -1}, "-1"),
        ({"num_classes": 10**15}, "classes"),
        ({"label_names": 5}, "label_names"),
        ({"label_names": ["a"]}, "1 label_names for 3 classes"),
        ({"model_args": {**ARGS, "depth": 10**9}}, "says 1000000000 blocks, model.safetensors holds 2"),
        ({"model_args": {**ARGS, "img_size": 10**12}}, "1000000000000"),
        ({"model_args": {**ARGS, "img_size": 64}}, "pos_embed has shape"),
        ({"model_args": {**ARGS, "no_such_argument": 1}}, "no_such_argument"),
        ({"model_args": [1, 2]}, "model_args"),
        ({"pretrained_cfg": {"input_size": "big"}}, "mean, std"),
        ({"pretrained_cfg": {"input_size": [3, 32, 32], "mean": ["x"] * 3, "std": [1, 1, 1]}}, "preprocessing"),
    ],
)
def test_hostile_settings_are_named(change: dict[str, Any], named: str, plain: Path) -> None:
    edit(plain / "config.json", lambda config: config.update(change))
    errors = [finding.text for finding in verify(plain).findings if finding.level == "error"]
    assert any(named in text for text in errors), errors


def test_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    assert "does not exist" in only_error(verify(tmp_path / "nowhere"))
    assert "config.json is missing" in only_error(verify(tmp_path))
    (tmp_path / "file").write_text("x")
    assert "is a file; a checkpoint is a folder" in only_error(verify(tmp_path / "file"))


def test_a_plan_cannot_point_outside_the_folder(folder: Path) -> None:
    (folder.parent / "secret").write_text("x")
    edit(folder / "plan.json", lambda plan: plan["files"].update({"../secret": "0"}))
    assert "../secret, which plan.json lists, is missing" in only_error(verify(folder))


def test_a_plan_without_hashes_is_an_error(folder: Path) -> None:
    edit(folder / "plan.json", lambda plan: plan.pop("tensors"))
    assert "does not record the hashes" in only_error(verify(folder))


def test_a_folder_of_transformers_is_verified_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=32)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    report = verify(tmp_path)
    assert report.ok, report.lines()
    assert "saved by transformers" in report.lines()[0]
    flip_bit(tmp_path / WEIGHTS, 9)
    assert not verify(tmp_path).ok
