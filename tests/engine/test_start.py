"""A checkpoint that is known starts without PyTorch, with the same answers; one that is not known, or has changed, as ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petalite.checkpoint import read_checkpoint
from petalite.engine import Classifier, load, loading, start
from petalite.errors import PetaliteError
from petalite.files import cache_dir, write_json
from petalite.prediction import predict
from tests.tiny import tiny_checkpoint, tiny_images, tiny_pixels

#: A process in which PyTorch cannot be imported, nor what needs it; workers are forked from it.
_WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("torch", "torchvision", "timm", "safetensors.torch")))
from petalite.cli import main
main()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PETALITE_CACHE", str(tmp_path / "cache"))
    return tiny_checkpoint(tmp_path / "tiny").path


def kept() -> list[Path]:
    return list((cache_dir() / "openvino").glob("*.json"))


def known(folder: Path) -> bool:
    """Whether a checkpoint is loaded without a look at its tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", lambda *_: (_ for _ in ()).throw(LookupError))
        try:
            load(folder, "cpu")
        except LookupError:
            return False
        return True


def test_predict_needs_no_pytorch_the_second_time(folder: Path, tmp_path: Path) -> None:
    photos = tiny_images(tmp_path / "images", train=3, valid=1, test=1)
    (photos / "broken.png").write_bytes(b"no image")
    predict(folder, [photos], tmp_path / "first.csv", device="cpu", batch_size=9)
    command = [sys.executable, "-c", _WITHOUT, "predict", str(folder), str(photos), "--batch-size", "9", "-q"]
    arguments = ["--device", "cpu", "--out", str(tmp_path / "second.csv"), "--gallery"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 1, done.stderr  # a file that cannot be read
    assert (tmp_path / "second.csv").read_bytes() == (tmp_path / "first.csv").read_bytes()
    Image.open(tmp_path / "second.png").verify()
    (tmp_path / "cache" / "openvino" / kept()[0].name).unlink()
    done = subprocess.run([*command, *arguments, "--force"], capture_output=True, text=True, check=False)
    assert "torch" in done.stderr  # so PyTorch was out of reach


def test_it_is_the_same_classifier(folder: Path) -> None:
    def answers(classifier: Classifier) -> list[object]:
        image = Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3))
        logits = [classifier.logits(tiny_pixels(count)).tolist() for count in (0, 1, 9)]
        return [classifier.info, classifier.classes, classifier.preprocess, classifier.predict(image), *logits]

    first = load(folder, "cpu", threads=1)
    assert known(folder)
    again = load(str(folder), "cpu", threads=1)
    assert answers(first) == answers(again)
    report = again.report()
    assert report["cached_batches"] == report["compiled_batches"] == [1, 8] and report["threads"] == 1
    assert again.device == torch.device("cpu")
    with pytest.raises(PetaliteError, match="a batch must be"):
        again.logits(tiny_pixels()[:, :, :31])
    with pytest.raises(PetaliteError, match="threads must be at least 1, got 0"):
        load(folder, "cpu", threads=0)


def test_what_decides_an_answer_makes_it_unknown(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not known(folder)
    load(folder, "cpu")
    assert known(folder)
    folder.rename(tmp_path / "moved")
    assert known(tmp_path / "moved") and load(tmp_path / "moved", "cpu").info.checkpoint == str(tmp_path / "moved")
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("asked"))
    for options in ({"compute": "bf16"}, {"attention": "math"}, {"engine": "module"}, {"device": "cuda:0"}):
        with pytest.raises(pytest.fail.Exception):
            load(tmp_path / "moved", **{"device": "cpu", **options})
    config = tmp_path / "moved" / "config.json"
    write_json(config, {**json.loads(config.read_text()), "label_names": ["a", "b", "c"]})
    assert not known(tmp_path / "moved")
    assert not known(tmp_path / "nowhere")


def test_what_was_changed_in_memory_or_on_the_way_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(read_checkpoint(folder), "cpu")
    load(folder, "cpu", engine="module")
    assert kept() == []
    digests = iter(["before", "after"])
    monkeypatch.setattr(start, "files_digest", lambda _: next(digests))
    load(folder, "cpu")
    assert kept() == []


def test_what_is_damaged_or_gone_is_made_again(folder: Path) -> None:
    logits = load(folder, "cpu").logits(tiny_pixels(1))
    for text in ("{", "[]", '{"info": {}}'):
        kept()[0].write_text(text)
        assert not known(folder)
    torch.testing.assert_close(load(folder, "cpu").logits(tiny_pixels(1)), logits)
    for graph in (cache_dir() / "openvino").glob("*.blob"):
        graph.unlink()
    assert known(folder)
    again = load(folder, "cpu")
    torch.testing.assert_close(again.logits(tiny_pixels(1)), logits)
    assert again.report()["cached_batches"] == []
