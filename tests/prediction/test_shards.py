"""Tars in the WebDataset layout: names, classes, bytes, and what is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from petalite.data.images import ImageError
from petalite.prediction.shards import Item, Member, members_of
from tests.prediction.conftest import MakeTar


def test_members_have_their_bytes_and_their_class(tmp_path: Path, make_tar: MakeTar) -> None:
    files = {
        "a/1.jpg": b"one",
        "a/1.cls": b"42\n",
        "b/1.cls": b"oak tree",
        "b/1.json": b"{}",
        "b/1.PNG": b"second",
        "3.v2.webp": b"third",
        "._3.jpg": b"",
        "x" * 150 + ".jpg": b"long",  # more than a plain header holds
    }
    items = list(members_of(make_tar(tmp_path / "s.tar", files)))
    assert [str(item.source).removeprefix(f"{tmp_path}/") for item in items] == [
        "s.tar/a/1.jpg", "s.tar/b/1.PNG", "s.tar/3.v2.webp", f"s.tar/{'x' * 150}.jpg",
    ]  # fmt: skip
    assert [item.target for item in items] == [42, "oak tree", None, None]
    assert [read(item) for item in items] == [b"one", b"second", b"third", b"long"]


def read(item: Item) -> bytes:
    assert not isinstance(item.source, str)
    return item.source.read()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no images|cannot be read as a tar"),
        (b"no tar" * 400, "cannot be read as a tar: "),
        (None, "No such file"),
    ],
)
def test_a_shard_that_cannot_be_read_is_a_row(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "s.tar"
    if content is not None:
        path.write_bytes(content)
    (item,) = members_of(path)
    assert str(item.source) == str(path)
    with pytest.raises(ImageError, match=says):
        read(item)


def test_a_shard_without_images_is_a_row(tmp_path: Path, make_tar: MakeTar) -> None:
    (item,) = members_of(make_tar(tmp_path / "s.tar", {"a.txt": b"text"}))
    with pytest.raises(ImageError, match=r"s\.tar holds no images"):
        read(item)


def test_a_shard_that_is_cut_off_gives_what_is_there(tmp_path: Path, make_tar: MakeTar) -> None:
    path = make_tar(tmp_path / "s.tar", {"1.jpg": b"1" * 600, "2.jpg": b"2" * 2_000})
    path.write_bytes(path.read_bytes()[:3_000])
    first, second, rest = members_of(path)
    assert read(first) == b"1" * 600
    with pytest.raises(ImageError, match=r"s\.tar/2\.jpg is cut off"):
        read(second)
    with pytest.raises(ImageError, match="cannot be read as a tar from here on"):
        read(rest)


def test_a_shard_that_has_gone_is_an_error_of_its_images(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.tar/a\.jpg cannot be read: No such file"):
        Member(str(tmp_path / "gone.tar"), "a.jpg", 512, 3).read()
