"""The check finds what is wrong, says it in words, survives a crash, and is quick the second time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from petalite.data import check_data, open_data
from petalite.data.check import DataReport
from petalite.data.images import decode

MakeTree = Callable[[dict[str, int]], Path]
MakeImage = Callable[..., Path]


@pytest.fixture
def root(make_tree: MakeTree) -> Path:
    """Twelve images, of which one is a copy in the same split and one across splits."""
    root = make_tree({"train/cat": 4, "train/dog": 3, "valid/cat": 1, "valid/dog": 1, "test/cat": 1, "test/dog": 2})
    shutil.copyfile(root / "train/cat/000.png", root / "train/cat/001.png")
    shutil.copyfile(root / "train/dog/002.png", root / "valid/dog/000.png")
    return root


def check(root: Path, **options: bool) -> DataReport:
    return check_data(open_data(root), **options)


def test_a_clean_folder_with_copies(root: Path) -> None:
    report = check(root)
    assert report.images == {"train": 7, "valid": 2, "test": 3}
    assert report.classes == {"cat": {"train": 4, "valid": 1, "test": 1}, "dog": {"train": 3, "valid": 1, "test": 2}}
    assert report.unreadable == {}
    across = (root / "train/dog/002.png", root / "valid/dog/000.png")
    assert set(report.copies) == {(root / "train/cat/000.png", root / "train/cat/001.png"), across}
    assert report.copies_across_splits == (across,)
    assert "  train/dog/002.png = valid/dog/000.png" in report.lines()


def test_sizes_are_of_the_upright_images(root: Path, make_image: MakeImage) -> None:
    make_image(root / "test/cat/large.png", height=100, width=50)
    make_image(root / "test/cat/small.png", height=8, width=9)
    assert check(root).sizes == {"min": (9, 8), "median": (30, 24), "max": (50, 100)}


def test_unreadable_files_are_listed_and_can_be_left_out(root: Path) -> None:
    (root / "train/cat/002.png").write_bytes(b"")
    (root / "test/dog/001.png").write_text("not an image")
    data = open_data(root)
    report = check_data(data)
    assert report.unreadable == {
        root / "test/dog/001.png": f"{root}/test/dog/001.png is not an image of a known format (it holds text)",
        root / "train/cat/002.png": f"{root}/train/cat/002.png is empty (0 bytes)",
    }
    assert "unreadable files: 2" in report.lines()
    assert check_data(data.without(report.unreadable)).unreadable == {}


def test_as_dict_is_json_with_relative_paths(root: Path) -> None:
    (root / "train/cat/002.png").write_bytes(b"")
    report = check(root)
    found = json.loads(json.dumps(report.as_dict()))
    assert found["unreadable"][0]["path"] == "train/cat/002.png"
    assert found["copies_across_splits"] == [["train/dog/002.png", "valid/dog/000.png"]]
    assert found["sizes"]["median"] == [30, 24]
    assert found["fingerprint"] == report.fingerprint


def test_uneven_classes_are_pointed_out(root: Path, make_image: MakeImage) -> None:
    assert "train: 3 (dog) to 4 (cat) images a class" in check(root).lines()
    for number in range(26):
        make_image(root / f"train/cat/more{number}.png")
    assert "train: 3 (dog) to 30 (cat) images a class; uneven: consider class weights" in check(root).lines()


def test_the_fingerprint_is_of_the_content(root: Path, tmp_path: Path) -> None:
    before = check(root).fingerprint
    assert check(shutil.copytree(root, tmp_path / "moved")).fingerprint == before
    (root / "train/cat/003.png").rename(root / "train/cat/004.png")
    renamed = check(root).fingerprint
    shutil.copyfile(root / "train/cat/000.png", root / "train/cat/002.png")
    changed = check(root).fingerprint
    (root / "classes.txt").write_text("Tom\nSpike\n")
    named = check(root).fingerprint
    assert len({before, renamed, changed, named}) == 4


def test_a_second_check_reads_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = check(root)
    monkeypatch.setattr("petalite.data.check._inspect_all", lambda paths: pytest.fail("read again"))
    assert check(root) == first
    with pytest.raises(pytest.fail.Exception):
        check(root, cache=False)
    os.utime(root / "train/cat/000.png")
    with pytest.raises(pytest.fail.Exception):
        check(root)


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', "[[1, 2]]"])
def test_a_damaged_cache_is_made_again(root: Path, content: str) -> None:
    first = check(root)
    caches = list((Path(os.environ["PETALITE_CACHE"]) / "checks").glob("*.json"))
    for cache in caches:
        cache.write_text(content)
    assert check(root) == first


def test_a_cache_that_cannot_be_written_does_not_matter(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PETALITE_CACHE", str(tmp_path / "file"))
    assert check(root).images["train"] == 7


def test_a_crash_of_a_decoder_is_blamed_on_its_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {root / "train/dog/001.png", root / "test/cat/000.png"}
    # workers are forked, so that they see this; it ends the process as a segmentation fault would
    monkeypatch.setattr("petalite.data.check.decode", lambda path: os._exit(11) if path in bad else decode(path))
    report = check(root, cache=False)
    assert report.unreadable == {path: f"{path} crashes the image decoder" for path in sorted(bad)}
    assert report.images["train"] == 7


def test_a_file_that_vanishes_is_unreadable(root: Path) -> None:
    data = open_data(root)
    (root / "train/dog/000.png").unlink()
    assert "No such file or directory" in check_data(data).unreadable[root / "train/dog/000.png"]
