"""The verb: written, run by the other runtime, compared, and only then there; what fails leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from petalite.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from petalite.data import open_data
from petalite.errors import Incomplete, PetaliteError
from petalite.export import TARGETS, export
from petalite.export import onnx_file as onnx_target
from petalite.export.check import chosen_samples
from petalite.export.run import REQUIRED, _needed, one_differs
from petalite.files import read_json
from petalite.quantization import quantize
from tests.command import Petalite, petalite
from tests.tiny import tiny_checkpoint

__all__ = ["petalite"]


def need(name: str) -> None:
    if reason := TARGETS[name].missing():
        pytest.skip(reason)


@pytest.mark.parametrize("preprocess", ["none", "pixels", "image"])
def test_onnx_answers_as_petalite_does(checkpoint: Checkpoint, images: Path, tmp_path: Path, preprocess: str) -> None:
    need("onnx")
    out = tmp_path / "out"
    found = export(checkpoint, "onnx", out, data=images, preprocess=preprocess)
    assert found["agreement"] == 1 and found["images"] == 21
    assert found["largest_difference"] < (0.2 if preprocess == "image" else 1e-4)
    assert found["accuracy"]["top1"] == found["petalite"]["top1"]
    assert {path.name for path in out.iterdir()} == {"model.onnx", "config.json", "export.json", "README.md"}
    assert read_json(out / "config.json")["label_names"] == list(checkpoint.classes)
    card = (out / "README.md").read_text()
    assert "top-1 on 21 test images" in card and "onnxruntime" in card


def test_the_command_prints_the_check(petalite: Petalite, checkpoint: Checkpoint, images: Path, tmp_path: Path) -> None:
    need("openvino")
    out = tmp_path / "out"
    done = petalite("export", checkpoint.path, "--to", "openvino", "--data", images, "--images", 4, "--out", out)
    assert done.code == 0, done.err
    assert "same class as Petalite on 100.00 %" in done.out and "on 4 test images" in done.out
    again = petalite("export", checkpoint.path, "--to", "openvino", "--data", images, "--out", out)
    assert again.code == 2 and "is not empty" in again.error


def test_a_quantized_checkpoint_is_multiplied_in_8_bits(
    checkpoint: Checkpoint, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnx")
    monkeypatch.setitem(REQUIRED, "int8", 0.8)  # random weights are nearly undecided on some images
    quantized = quantize(checkpoint, "nf4", tmp_path / "nf4")  # without ranges: they are found on training images
    found = export(quantized, "onnx", tmp_path / "out", data=images, int8=True, preprocess="pixels")
    assert found["agreement"] >= 0.8
    assert found["largest_difference"] > 1e-4  # it really is not the plain graph
    assert "QuantizeLinear" in (tmp_path / "out" / "model.onnx").read_bytes().decode("latin-1")


def test_a_runtime_that_answers_otherwise_is_no_export(
    petalite: Petalite, checkpoint: Checkpoint, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnx")
    wrong = lambda job, folder: lambda batch: np.tile(np.float32([9, 0, 0]), (len(batch), 1))  # noqa: E731
    monkeypatch.setattr(onnx_target, "run", wrong)
    out = tmp_path / "exports" / "out"
    done = petalite("export", checkpoint.path, "--to", "onnx", "--data", images, "--out", out)
    assert done.code == 1
    assert "agrees with Petalite on" in done.error and "nothing was written" in done.error
    assert list(out.parent.iterdir()) == []
    monkeypatch.setattr(onnx_target, "run", lambda job, folder: lambda batch: np.zeros((len(batch), 2), np.float32))
    with pytest.raises(Incomplete, match="where"):
        export(checkpoint, "onnx", out, data=images)


@pytest.mark.parametrize(
    ("images", "other", "little"),
    [(20, 1, True), (20, 2, False), (80, 1, True), (19, 1, False), (1, 1, False), (819, 0, True)],
)
def test_one_photo_of_many_may_be_answered_otherwise_in_8_bits(images: int, other: int, little: bool) -> None:
    assert one_differs(1 - other / images, images) == little


@pytest.mark.parametrize(
    ("int8", "images", "says"), [(True, 80, "99.0 %, or all but one,"), (True, 15, "99.0 %"), (False, 80, "99.0 %")]
)
def test_what_is_needed_is_said_as_it_holds(int8: bool, images: int, says: str) -> None:
    assert _needed(0.99, int8, images) == says


def test_timm_loads_its_folder(checkpoint: Checkpoint, images: Path, tmp_path: Path) -> None:
    quantized = quantize(checkpoint, "int8-channel", tmp_path / "int8")
    found = export(quantized, "timm", tmp_path / "out", data=images)
    assert found["agreement"] == 1
    back = read_checkpoint(tmp_path / "out")
    assert back.plan.format == "fp32" and back.classes == checkpoint.classes


def test_transformers_loads_its_folder(images: Path, tmp_path: Path) -> None:
    need("transformers")
    made = tiny_checkpoint(tmp_path / "tiny")
    settings = {**made.config["pretrained_cfg"], "crop_mode": "squash", "crop_pct": 1.0}
    config = {**made.config, "pretrained_cfg": settings}
    checkpoint = write_checkpoint(tmp_path / "squash", config, made.tensors, made.plan)
    found = export(checkpoint, "transformers", tmp_path / "out", data=images)
    assert found["agreement"] == 1 and found["largest_difference"] < 0.05
    back = read_checkpoint(tmp_path / "out")  # and what was written can be imported again
    for name, tensor in checkpoint.tensors.items():
        assert torch.equal(back.tensors[name], tensor), name
    assert back.classes == checkpoint.classes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"reg_tokens": 2}, "has no reg_token"),
        ({"init_values": 0.5}, "ls1"),
        ({"global_pool": "avg"}, "reads the class token alone"),
        ({"proj_bias": False}, "a bias beside"),
    ],
)
def test_transformers_is_told_what_it_does_not_have(tmp_path: Path, arguments: dict[str, object], says: str) -> None:
    need("transformers")
    from petalite.export.targets import Job

    with pytest.raises(PetaliteError, match=says):
        TARGETS["transformers"].module().write(Job(tiny_checkpoint(tmp_path / "t", **arguments)), tmp_path)


@pytest.mark.parametrize("target", ["timm", "transformers"])
def test_folders_of_other_libraries_cannot_merge(
    target: str, checkpoint: Checkpoint, images: Path, tmp_path: Path
) -> None:
    need(target)
    merging = replace(checkpoint, plan=replace(checkpoint.plan, merge=(2, 2)))
    with pytest.raises(PetaliteError, match="merges tokens, which"):
        export(merging, target, tmp_path / "out", data=images)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--to", "onx"], "unknown target 'onx' (did you mean 'onnx'?)"),
        (["--to", "timm", "--int8"], "timm has no --int8; targets that do: onnx, openvino"),
        (["--to", "pt2", "--preprocess", "image"], "pt2 has no --preprocess image; targets that do: onnx"),
        (["--to", "onnx", "--preprocess", "pixel"], "did you mean 'pixels'?"),
        (["--to", "timm", "--images", "0"], "at least 1 image"),
    ],
)
def test_wrong_use_is_one_line(
    petalite: Petalite, checkpoint: Checkpoint, images: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    done = petalite("export", checkpoint.path, "--data", images, "--out", tmp_path / "out", *arguments)
    assert done.code == 2 and says in done.error
    assert not (tmp_path / "out").exists()


def test_a_missing_package_names_what_brings_it() -> None:
    absent = replace(TARGETS["onnx"], needs=("onnx", "no_such_package"))
    with pytest.raises(PetaliteError, match=r"onnx needs no_such_package: pip install 'petalite\[export\]'"):
        absent.require()


def test_fewer_images_are_spread_over_all(images: Path) -> None:
    data = open_data(images)
    chosen = chosen_samples(data, 3)
    assert [sample.target for sample in chosen] == [0, 1, 2]
    assert chosen_samples(data, 500) == list(data.splits["test"])
