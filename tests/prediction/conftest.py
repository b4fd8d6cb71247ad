"""What the tests of predictions share: small parts, a folder of small photos, tars made of files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.tiny import tiny_checkpoint, tiny_images

MakeTar = Callable[[Path, Mapping[str, bytes]], Path]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 images."""
    monkeypatch.setattr("petalite.prediction.sources._LEAST", 4)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("predict") / "tiny").path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """15 images, 5 in each of three class folders."""
    return tiny_images(tmp_path / "images", train=0, valid=0, test=5) / "test"


@pytest.fixture
def make_tar() -> MakeTar:
    def make(path: Path, files: Mapping[str, bytes]) -> Path:
        with tarfile.open(path, "w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return path

    return make
