"""What a person names becomes images in an order that never changes, without a list of all of them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from petalite.errors import PetaliteError
from petalite.prediction.shards import Item
from petalite.prediction.sources import Files, Shard, check, chunk_size, entries, expand, units


def touched(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def named(root: Path, *sources: str | Path, stdin: str = "") -> list[str]:
    found = entries(sources, io.StringIO(stdin))
    names = (entry.path if isinstance(entry, Shard) else str(entry.source) for entry in found)
    return [name.removeprefix(f"{root}/") for name in names]


def test_folders_and_globs_are_read_by_name_all_the_way_down(tmp_path: Path) -> None:
    touched(tmp_path, "b/2.jpg", "b/10.JPG", "b.png", "a/z/1.webp", "a.tar", "notes.txt", ".hid.jpg", ".hidden/x.jpg")
    below = ["a/z/1.webp", "a.tar", "b/10.JPG", "b/2.jpg", "b.png"]
    assert named(tmp_path, tmp_path) == below
    assert [str(path) for path in expand([tmp_path])] == [str(tmp_path / name) for name in below]
    by_path = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path for path in by_path if str(path.relative_to(tmp_path)) in below] == expand([tmp_path])
    assert named(tmp_path, tmp_path / "*" / "*.jpg") == ["b/2.jpg"]
    assert named(tmp_path, tmp_path / "notes.txt", tmp_path / "b") == ["notes.txt", "b/10.JPG", "b/2.jpg"]


def test_lists_come_from_stdin_csv_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("target,path\nrose,x.jpg\n,gone.png\n,\n,s.tar\n")
    items = list(entries([tmp_path / "list.csv"]))
    assert items == [Item("x.jpg", "rose"), Item("gone.png"), Shard("s.tar")]
    assert named(tmp_path, "-", stdin="a.jpg\r\n\n b .png\nshard.tar\n") == ["a.jpg", " b .png", "shard.tar"]
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    arrow = pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"path": ["x.jpg", "y.jpg"], "target": [3, None]}), tmp_path / "list.parquet")
    assert list(entries([tmp_path / "list.parquet"])) == [Item("x.jpg", "3"), Item("y.jpg")]


def test_a_list_without_end_is_taken_as_it_is_needed() -> None:
    def endless() -> Iterator[str]:
        return (f"{number}.jpg\n" for number in itertools.count())

    first, second = itertools.islice(units(["-"], 32, endless()), 2)  # type: ignore[arg-type]
    assert isinstance(first, Files) and isinstance(second, Files)
    assert [str(item.source) for item in (*first.chunk, *second.chunk)] == [f"{number}.jpg" for number in range(512)]


@pytest.mark.parametrize("batch_size", [1, 32, 100, 256, 1_000])
def test_chunks_are_whole_batches_and_grow(batch_size: int) -> None:
    sizes = [chunk_size(number, batch_size) for number in range(200)]
    assert sizes == sorted(sizes)
    assert all(size % batch_size == 0 for size in sizes)
    assert 256 <= sizes[0] < 256 + batch_size
    assert 65_536 <= sizes[-1] < 65_536 + batch_size
    assert sizes[-1] == sizes[128] > sizes[127]


@pytest.mark.usefixtures("small_parts")
def test_a_shard_is_a_unit_of_its_own(tmp_path: Path) -> None:
    touched(tmp_path, *(f"{number}.jpg" for number in (1, 2, 3, 4, 5)), "4.tar", "6.tar")
    kinds = [len(unit.chunk) if isinstance(unit, Files) else Path(unit.path).name for unit in units([tmp_path], 2)]
    assert kinds == [4, "4.tar", 1, "6.tar"]


def test_other_images_have_another_digest(tmp_path: Path) -> None:
    units_of = [Files((Item("a.jpg"), Item("b.jpg"))), Files((Item("a.jpg"),)), Files((Item("a.jpg", "rose"),))]
    (tmp_path / "s.tar").write_bytes(b"1")
    before = Shard(str(tmp_path / "s.tar")).digest()
    (tmp_path / "s.tar").write_bytes(b"12")
    digests = [*(unit.digest() for unit in units_of), before, Shard(str(tmp_path / "s.tar")).digest()]
    assert len(set(digests)) == 5
    assert units_of[0].digest() == Files((Item("a.jpg"), Item("b.jpg"))).digest()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("missing.jpg", "missing.jpg does not exist"),
        ("empty", "empty holds no images"),
        ("*.png", "no image matches"),
        ("s.tar.gz", "s.tar.gz is compressed; .* unpack it"),
        ("list.csv", r"list\.csv has no column 'path' \(it has file, label\)"),
        ("latin.csv", "cannot be read as a list of images"),
        ("bad.parquet", "cannot be read as a list of images"),
    ],
)
def test_what_cannot_be_predicted_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("file,label\na.jpg,rose\n")
    (tmp_path / "latin.csv").write_bytes(b"path\ncaf\xe9.jpg\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "s.tar.gz").touch()
    if source.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs pyarrow")
    with pytest.raises(PetaliteError, match=says) as raised:
        check([source])
    assert "\n" not in str(raised.value)


def test_nothing_named_is_an_error() -> None:
    with pytest.raises(PetaliteError, match="no images to predict; name files"):
        check([])
    with pytest.raises(PetaliteError, match="the list is empty"):
        expand(["-"], io.StringIO("\n"))
