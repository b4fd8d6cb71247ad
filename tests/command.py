"""The command line in this process: `petalite("ls", "formats")` gives its exit code and what it printed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from petalite import cli, console
from tests.tiny import tiny_checkpoint, tiny_images


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one error line."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("error: ")


Petalite = Callable[..., Outcome]


@pytest.fixture
def petalite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Petalite:
    def call(*arguments: object) -> Outcome:
        console.set_quiet(False)
        monkeypatch.setattr(sys, "argv", ["petalite", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tiny_images(tmp_path / "images", train=4, valid=2, test=2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny").path


def train_arguments(images: object, out: Path, model: object) -> list[object]:
    return [
        "train",
        "--data",
        images,
        "--model",
        model,
        "--method",
        "head",
        "--epochs",
        1,
        "--device",
        "cpu",
        "--out",
        out,
    ]
