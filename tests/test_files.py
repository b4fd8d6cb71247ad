"""Nothing is ever half-written: a temporary name, then a rename; and folders of others are left alone."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from petalite.errors import PetaliteError
from petalite.files import atomic, atomic_folder, prepare_out, read_json, write_json


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic(target) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "one").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out") as folder:
        (folder / "two").write_text("2")
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "one"]


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(PetaliteError, match=r"no space left to write .*a\.txt"), atomic(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000, "\udcff"])
def test_damaged_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, errors="surrogateescape")
    with pytest.raises(PetaliteError, match="cannot be read as JSON"):
        read_json(tmp_path / "a.json")


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_only_an_output_of_petalite_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(PetaliteError, match=r"is not empty; add --resume .* or --force"):
        prepare_out(tmp_path, resume=False)
    with pytest.raises(PetaliteError, match="is not empty; name another folder, or add --force"):
        prepare_out(tmp_path)
    with pytest.raises(PetaliteError, match="does not look like an output of petalite"):
        prepare_out(tmp_path, force=True)
    (tmp_path / ".last.pt.x1.tmp").write_text("what a killed process left")
    assert prepare_out(tmp_path, resume=True) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "run.json").write_text("{}")
    prepare_out(tmp_path, force=True)
    assert not tmp_path.exists()
