"""`doctor CHECKPOINT`: the list before a deployment, each check made by doing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from petalite.doctor.deployment import deployment
from petalite.engine import Classifier
from petalite.errors import PetaliteError
from petalite.verification import verify
from tests.tiny import tiny_checkpoint


def checks(path: Path) -> dict[str, Any]:
    return {row["name"]: row for row in deployment(path, verify(path))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny").path


def test_a_good_checkpoint_passes_every_check(path: Path) -> None:
    found = checks(path)
    assert list(found) == ["checkpoint", "quantization", "preprocessing", "attention", "gpu", "answers"]
    assert all(row["ok"] for row in found.values())
    assert found["preprocessing"]["text"].startswith("32x32, bicubic")
    assert "3 classes" in found["answers"]["text"]


def test_what_a_damaged_checkpoint_makes_impossible_is_not_checked(path: Path) -> None:
    config = path / "config.json"
    config.write_text(config.read_text().replace("bicubic", "bilinear"))
    found = checks(path)
    assert found["checkpoint"]["ok"] is False
    assert "config.json is not what was written" in found["checkpoint"]["text"]
    assert {row["ok"] for name, row in found.items() if name != "checkpoint"} == {None}


def test_preprocessing_without_a_hash_is_not_said_to_be_that_of_training(path: Path) -> None:
    (path / "plan.json").unlink()
    assert "no hash shows that it is as in training" in checks(path)["preprocessing"]["text"]


def test_a_checkpoint_that_does_not_load_here_says_why(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PetaliteError("needs a GPU")

    monkeypatch.setattr("petalite.doctor.deployment.load", refuse)
    found = checks(path)
    assert (found["answers"]["ok"], found["attention"]["ok"]) == (False, None)
    assert found["answers"]["text"] == "it cannot be loaded here: needs a GPU"


def test_answers_that_are_no_numbers_are_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "logits", lambda self, batch: torch.full((1, 3), float("nan")))
    assert checks(path)["answers"] == {
        "name": "answers",
        "ok": False,
        "text": "it answers with NaN or infinity; train or quantize it again",
    }
