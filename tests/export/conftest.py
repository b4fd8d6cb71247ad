"""What the export tests share: a tiny checkpoint that knows its images, and where the exports' packages are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from petalite.checkpoint import Checkpoint
from tests.tiny import tiny_checkpoint, tiny_images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tiny_images(tmp_path / "images", train=6, valid=2, test=7)  # 21 test images: a batch of 16 and one of 5


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return tiny_checkpoint(tmp_path / "tiny")
