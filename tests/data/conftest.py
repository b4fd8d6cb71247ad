"""Small image folders made for a test."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petalite.data import Preprocess

MakeImage = Callable[..., Path]
MakeTree = Callable[[dict[str, int]], Path]


def _noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def noise() -> Callable[..., Image.Image]:
    """`noise(height, width, seed)`: an RGB image that no other seed has."""
    return _noise


@pytest.fixture
def make_image() -> MakeImage:
    """Write a small image at a path whose name decides its pixels."""

    def make(path: Path, height: int = 24, width: int = 30) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        _noise(height, width, zlib.crc32(str(path).encode())).save(path)
        return path

    return make


@pytest.fixture
def make_tree(tmp_path: Path, make_image: MakeImage) -> MakeTree:
    """`{"train/cat": 3}` -> three PNGs in `train/cat` of a new folder, which is returned; 0 makes an empty folder."""

    def make(counts: dict[str, int]) -> Path:
        root = tmp_path / "photos"
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                make_image(root / folder / f"{number:03d}.png")
        return root

    return make


@pytest.fixture
def preprocess() -> Preprocess:
    """The preprocessing of a small model."""
    return Preprocess((16, 16), "bilinear", 1.0, "center", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
