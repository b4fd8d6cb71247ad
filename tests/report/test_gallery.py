"""The picture of sample predictions, and the small photos in it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from petalite.report import write_gallery
from petalite.report.gallery import spaced
from petalite.report.inputs import Prediction
from petalite.report.photos import data_uri, find, thumbnail


@pytest.fixture
def red(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (90, 60), (200, 20, 20)).save(path)
    return path


def row(path: Path | str, **more: Any) -> dict[str, Any]:
    scores = {f"score_{k}": 0.5**k for k in range(1, 6)}
    names = {f"prediction_{k}": f"class {k}" for k in range(1, 6)}
    return {"path": str(path), "target": "class 1", **names, **scores, "error": "", **more}


def test_a_gallery_shows_photos_in_a_grid(red: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "gallery.png"
    rows = [
        row(red),
        row(red, target=None),
        row(red, target="class 2"),
        row(red, prediction_1="夜の女王 $\\frac{1}{0}$"),
    ]
    assert write_gallery(rows, out) == 4
    with Image.open(out) as image:
        picture = image.convert("RGB")
    assert picture.width > picture.height
    width = picture.width // 4
    line = picture.height // 3
    assert [picture.getpixel((width * k + width // 2, line)) for k in range(4)] == [(200, 20, 20)] * 4


def test_unreadable_photos_are_left_out(red: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"\xff\xd8 no picture")
    rows = [
        row(damaged),
        row(tmp_path / "gone.jpg"),
        {"path": str(red), "error": "red.png is damaged"},
        row(red),
    ]
    assert write_gallery(rows, tmp_path / "g.png") == 1


def test_no_photo_means_no_file(tmp_path: Path) -> None:
    assert write_gallery([], tmp_path / "g.png") == 0
    assert write_gallery([row(tmp_path / "gone.jpg")], tmp_path / "g.png") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_sample_is_evenly_spaced() -> None:
    items = [Prediction(str(number), None, (), "") for number in range(100)]
    assert [item.path for item in spaced(items, 4)] == ["12", "37", "62", "87"]
    assert spaced(items[:3], 4) == items[:3]


def test_thumbnails_are_square_and_tiny_images_stay_sharp(red: Path, tmp_path: Path) -> None:
    image = thumbnail(red, 50)
    assert image is not None
    assert image.size == (50, 50)
    digit = tmp_path / "digit.png"
    board = Image.new("L", (8, 8))
    board.putpixel((0, 0), 255)
    board.save(digit)
    enlarged = thumbnail(digit, 64)
    assert enlarged is not None
    assert sorted(enlarged.getcolors() or ()) == [(64, (255, 255, 255)), (63 * 64, (0, 0, 0))]


def test_a_photo_that_cannot_be_shown_is_none(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    assert thumbnail(empty) is None
    assert thumbnail(None) is None


def test_photos_are_found_under_the_data_folder(red: Path, tmp_path: Path) -> None:
    assert find(str(red)) == red
    assert find("red.png", [tmp_path / "elsewhere", tmp_path]) == red
    assert find("blue.png", [tmp_path]) is None
    assert find("x" * 5000, [tmp_path]) is None
    assert find("a\0b", [tmp_path]) is None
    assert find("") is None


def test_a_data_address_holds_the_photo(red: Path) -> None:
    image = thumbnail(red, 40)
    assert image is not None
    head, body = data_uri(image).split(",", 1)
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as decoded:
        assert decoded.size == (40, 40)
