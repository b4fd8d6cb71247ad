"""Every kind of bad input is one line and the right exit code, and nothing is left half-written."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from petalite.files import read_json, write_json
from tests.command import Petalite, checkpoint, images, petalite, train_arguments
from tests.tiny import tiny_checkpoint

__all__ = ["checkpoint", "images", "petalite"]


# --- images ---------------------------------------------------------------------------------------------------------


def break_nothing(images: Path) -> object:
    return images.parent / "missing"


def break_empty_class(images: Path) -> object:
    shutil.rmtree(images / "train" / "rose")
    (images / "train" / "rose").mkdir()
    return images


def break_one_class(images: Path) -> object:
    for split in ("train", "valid", "test"):
        for name in ("rose", "tulip"):
            shutil.rmtree(images / split / name)
    return images


def break_unequal_classes(images: Path) -> object:
    shutil.rmtree(images / "test" / "rose")
    return images


def break_no_images(images: Path) -> object:
    for file in images.rglob("*.png"):
        file.unlink()
    return images


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_nothing, "does not exist"),
        (break_empty_class, "rose"),
        (break_one_class, "one class"),
        (break_unequal_classes, "rose"),
        (break_no_images, "no images"),
    ],
)
@pytest.mark.parametrize("verb", ["data check", "train", "run", "evaluate"])
def test_bad_folders_are_refused(
    petalite: Petalite,
    images: Path,
    checkpoint: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    says: str,
    verb: str,
) -> None:
    folder, out = damage(images), tmp_path / "out"
    arguments = {
        "data check": ["data", "check", folder],
        "train": train_arguments(folder, out, checkpoint),
        "run": ["run", "--data", folder, "--model", checkpoint, "--out", out],
        "evaluate": ["evaluate", checkpoint, "--data", folder],
    }[verb]
    outcome = petalite(*arguments)
    assert outcome.code == 2
    assert says in outcome.error
    assert not out.exists()


def bomb(path: Path) -> None:
    """A PNG whose header says 30,000 x 30,000."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)))


def truncated(path: Path) -> None:
    Image.effect_noise((64, 64), 90).convert("RGB").save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:800])


BAD_IMAGES = {
    "text": (lambda path: path.write_text("hello"), "is not an image"),
    "zero": (lambda path: path.write_bytes(b""), "empty"),
    "truncated": (truncated, "truncated"),
    "bomb": (bomb, "900000000 pixels"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_a_row_with_its_error_and_the_rest_goes_on(
    petalite: Petalite, images: Path, checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    make, says = BAD_IMAGES[kind]
    make(images / "test" / "rose" / "bad.jpg")
    out = tmp_path / "predictions.csv"
    outcome = petalite(
        "predict", checkpoint, images / "test", "--out", out, "--device", "cpu", "--no-gallery", "--json"
    )
    assert outcome.code == 1
    summary = json.loads(outcome.out)
    assert (summary["images"], summary["errors"]) == (7, 1)
    rows = out.read_text().splitlines()
    assert rows[0].startswith("path,target,prediction_1,score_1,prediction_2")
    bad = next(row for row in rows if "bad.jpg" in row)
    assert says.replace(" ", "") in bad.replace(",", "").replace("×", "x").replace(" ", "")
    checked = petalite("data", "check", images)
    assert checked.code == 1
    assert "bad.jpg" in checked.out


# --- checkpoints ----------------------------------------------------------------------------------------------------


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["blocks.1.attn.qkv.weight"]
    save_file(tensors, folder / "model.safetensors")


def of_another_class_count(folder: Path) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "num_classes": 4, "label_names": ["a", "b", "c", "d"]})


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"head.weight": torch.zeros(3, 64)}, folder / "pytorch_model.bin")


def a_pickle_in_disguise(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"head.weight": [0.0]}))


def cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def of_another_architecture(folder: Path) -> None:
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "architecture": "resnet50"})


def of_other_blocks(folder: Path) -> None:
    write_json(
        folder / "config.json",
        {**read_json(folder / "config.json"), "architecture": "vit_relpos_small_patch16_224", "model_args": {}},
    )


def with_a_foreign_plan(folder: Path) -> None:
    plan = read_json(folder / "plan.json")
    plan["layers"]["blocks.7.mlp.fc1"] = "nf4"
    write_json(folder / "plan.json", plan)


def with_a_path_to_load(folder: Path) -> None:
    config = read_json(folder / "config.json")
    config["model_args"]["checkpoint_path"] = "/tmp/evil.pth"
    write_json(folder / "config.json", config)


BAD_CHECKPOINTS = [
    (lambda folder: (folder / "config.json").unlink(), "is not a checkpoint"),
    (without_a_tensor, "lacks the tensor blocks.1.attn.qkv.weight"),
    (of_another_class_count, "the head has 3 classes, but config.json says 4"),
    (only_a_pickle, "pickle"),
    (a_pickle_in_disguise, "pickle"),
    (cut_short, "damaged"),
    (not_json, "cannot be read as JSON"),
    (of_another_architecture, "is not supported; supported: timm's vit_*"),
    (of_other_blocks, "not supported; supported: timm's vit_*"),
    (with_a_foreign_plan, "layers that the model does not have: blocks.7.mlp.fc1"),
    (with_a_path_to_load, "may not hold 'checkpoint_path'"),
]


@pytest.mark.parametrize(("damage", "says"), BAD_CHECKPOINTS)
@pytest.mark.parametrize("verb", ["predict", "quantize", "evaluate"])
def test_bad_checkpoints_are_refused(
    petalite: Petalite,
    images: Path,
    checkpoint: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    says: str,
    verb: str,
) -> None:
    damage(checkpoint)
    out = tmp_path / "out"
    arguments = {
        "predict": ["predict", checkpoint, images / "test", "--out", out / "predictions.csv"],
        "quantize": ["quantize", checkpoint, "--format", "int8", "--out", out],
        "evaluate": ["evaluate", checkpoint, "--data", images],
    }[verb]
    outcome = petalite(*arguments)
    assert outcome.code == 2
    assert says in outcome.error
    assert not out.exists()


def test_verify_finds_a_flipped_bit_and_names_it(petalite: Petalite, checkpoint: Path) -> None:
    assert petalite("verify", checkpoint).code == 0
    weights = checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(bytes(data))
    outcome = petalite("verify", checkpoint)
    assert outcome.code == 1
    name = max(load_file(weights), key=lambda name: offset(weights, name))
    assert name in outcome.out


def offset(weights: Path, name: str) -> int:
    data = weights.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return int(json.loads(data[8 : 8 + length])[name]["data_offsets"][0])


def test_classes_that_do_not_fit_the_data_are_named(petalite: Petalite, images: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", classes=("daisy", "oak", "tulip")).path
    outcome = petalite("evaluate", other, "--data", images)
    assert outcome.code == 2
    assert "class 1 is 'oak'" in outcome.error
    four = tiny_checkpoint(tmp_path / "four", classes=("a", "b", "c", "d")).path
    assert "has 4 classes, images has 3" in petalite("evaluate", four, "--data", images).error


# --- the machine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["quantize", "train", "predict"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    petalite: Petalite, images: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    out = tmp_path / "out"
    arguments = {
        "quantize": ["quantize", checkpoint, "--format", "int8", "--out", out],
        "train": train_arguments(images, out, checkpoint),
        "predict": ["predict", checkpoint, images / "test", "--out", out / "predictions.csv"],
    }[verb]

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    outcome = petalite(*arguments)
    assert outcome.code == 2
    assert "no space left to write" in outcome.error
    assert [path for path in tmp_path.rglob("*") if path.is_file() and out in path.parents] == []
    assert not list(tmp_path.rglob("*.tmp"))


def test_without_a_network_a_name_says_so(
    petalite: Petalite, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    outcome = petalite(*train_arguments(images, tmp_path / "out", "vit_tiny_patch16_224"))
    assert outcome.code == 2
    assert "could not be downloaded" in outcome.error
    assert "--pretrained no" in outcome.error


def test_an_output_is_never_overwritten(petalite: Petalite, checkpoint: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    for arguments in (
        ["quantize", checkpoint, "--out", out],
        ["run", "--data", images, "--model", checkpoint, "--out", out],
    ):
        assert petalite(*arguments).code == 2
        refused = petalite(*arguments, "--force")
        assert refused.code == 2
        assert "does not look like an output of petalite" in refused.error
    assert (out / "mine.txt").read_text() == "precious"
    csv = tmp_path / "predictions.csv"
    csv.write_text("mine")
    assert "add --force" in petalite("predict", checkpoint, images / "test", "--out", csv).error
    assert csv.read_text() == "mine"
