"""What a person names → the images to predict, as they are needed: no list of them has to fit in memory.

    check(sources)                                     # one line for what is missing, before anything is loaded
    for unit in units(["photos/", "shards/*.tar", "list.csv", "-"], batch_size=32): ...

A *unit* is what is predicted as a whole and written as one part: a chunk of files, or a tar shard. The same sources give
the same units, so that a run that was killed knows what is left. Chunks grow with their number, from 256 files to
65,536: little is lost early on, and a billion files make 15,000 parts.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from petalite.data.listing import is_image
from petalite.errors import PetaliteError
from petalite.prediction.extras import needed
from petalite.prediction.shards import Item, is_shard, members_of

_GLOB = set("*?[")
_LISTS = (".csv", ".parquet")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LEAST, _DOUBLINGS, _EACH = 256, 8, 16


@dataclass(frozen=True)
class Files:
    """A chunk of files."""

    chunk: tuple[Item, ...]

    def items(self) -> Iterable[Item]:
        """The images."""
        return self.chunk

    def digest(self) -> str:
        """16 hex digits that stand for the names, and for the classes that the source gives."""
        text = "\n".join(f"{item.source}\0{item.target}" for item in self.chunk)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True)
class Shard:
    """A tar file."""

    path: str

    def items(self) -> Iterable[Item]:
        """The images in it."""
        return members_of(Path(self.path))

    def digest(self) -> str:
        """16 hex digits that stand for its name and its size."""
        try:
            size = os.stat(self.path).st_size
        except OSError:
            size = -1
        return hashlib.sha256(f"{self.path}\0{size}".encode("utf-8", "surrogateescape")).hexdigest()[:16]


Unit = Files | Shard


def check(sources: Iterable[str | Path]) -> None:
    """Raise PetaliteError, in one line, for a source that does not exist, holds no image, or cannot be read as a list."""
    named = False
    for source in sources:
        named = True
        text, path = str(source), Path(source)
        if text.lower().endswith(_PACKED):
            raise PetaliteError(
                f"{text} is compressed; images are read from all over a shard: unpack it to a plain .tar"
            )
        if text != "-" and not path.is_file():
            found = next(_found(text), None)
            if found is None:
                raise PetaliteError(f"{path} holds no images" if path.is_dir() else f"no image matches {text}")
        elif path.suffix.lower() in _LISTS:
            next(_listed(path), None)
    if not named:
        raise PetaliteError("no images to predict; name files, folders, globs, or '-' for a list on stdin")


def units(sources: Iterable[str | Path], batch_size: int, stdin: TextIO | None = None) -> Iterator[Unit]:
    """The units in order; chunks hold whole batches of `batch_size` images, but for the last one before a shard."""
    if batch_size < 1:
        raise PetaliteError(f"a batch of {batch_size} images is not possible; give at least 1")
    number = 0
    for is_tar, group in itertools.groupby(entries(sources, stdin), key=lambda entry: isinstance(entry, Shard)):
        if is_tar:
            yield from (entry for entry in group if isinstance(entry, Shard))
            continue
        items = (entry for entry in group if isinstance(entry, Item))
        while chunk := tuple(itertools.islice(items, chunk_size(number, batch_size))):
            yield Files(chunk)
            number += 1


def chunk_size(number: int, batch_size: int) -> int:
    """Images of the chunk of this number (from 0): whole batches, so that a resumed run computes the same ones."""
    least = _LEAST << min(number // _EACH, _DOUBLINGS)
    return -(-least // batch_size) * batch_size


def entries(sources: Iterable[str | Path], stdin: TextIO | None = None) -> Iterator[Item | Shard]:
    """Images and shards in the order of their sources; in folders (all the way down) and globs, by name.

    A file that is named stays, whatever its ending; folders and globs give files with an image's ending and shards.
    CSV and Parquet files are lists with a column `path`, and perhaps `target`; `-` is a list on stdin, one path a line.
    Relative paths in lists are relative to the current folder, and may be missing: that is a row with its error.
    """
    for source in sources:
        text = str(source)
        if text == "-":
            lines = (line.rstrip("\r\n") for line in stdin or sys.stdin)
            yield from (_entry(line) for line in lines if line.strip())
        elif Path(text).suffix.lower() in _LISTS and Path(text).is_file():
            yield from _listed(Path(text))
        elif Path(text).is_file():
            yield _entry(str(Path(text)))
        else:
            yield from map(_entry, _found(text))


def expand(sources: Iterable[str | Path], stdin: TextIO | None = None) -> list[Path]:
    """All the files that `sources` name, in memory. Raises PetaliteError as `check` does, and where there are none."""
    sources = list(sources)
    check(sources)
    found = [Path(entry.path if isinstance(entry, Shard) else str(entry.source)) for entry in entries(sources, stdin)]
    if not found:
        raise PetaliteError("no images to predict; the list is empty")
    return found


def _entry(path: str, target: str | None = None) -> Item | Shard:
    return Shard(path) if is_shard(path) else Item(path, target)


def _found(text: str) -> Iterator[str]:
    """Images and shards in a folder or of a glob. Raises PetaliteError for what is neither."""
    path = Path(text)
    if path.is_dir():
        return walk(str(path))
    if _GLOB & set(text):
        return (name for name in sorted(glob.iglob(text, recursive=True)) if _is_wanted(Path(name).name))
    raise PetaliteError(f"{path} does not exist")


def walk(folder: str) -> Iterator[str]:
    """Images and shards in a folder, all the way down, by name; the names of one folder at a time are in memory.

    Hidden files and folders do not count, and links to folders are not followed.
    """
    try:
        with os.scandir(folder) as found:
            names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
    except OSError as error:
        raise PetaliteError(f"{folder} cannot be read: {error.strerror or error}") from error
    for name, is_folder in names:
        if is_folder and not name.startswith("."):
            yield from walk(os.path.join(folder, name))
        elif not is_folder and _is_wanted(name):
            yield os.path.join(folder, name)


def _is_wanted(name: str) -> bool:
    return is_image(name) or is_shard(name)


def _listed(path: Path) -> Iterator[Item | Shard]:
    """The entries of a CSV or Parquet file. Raises PetaliteError where it is none, or has no column `path`."""
    try:
        for values in _csv_rows(path) if path.suffix.lower() == ".csv" else _parquet_rows(path):
            if values[0]:
                yield _entry(values[0], values[1] or None)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise PetaliteError(f"{path} cannot be read as a list of images: {' '.join(str(error).split())}") from error


def _csv_rows(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        _check_columns(path, rows.fieldnames or ())
        for row in rows:
            yield row["path"] or "", row.get("target") or ""


def _parquet_rows(path: Path) -> Iterator[tuple[str, str]]:
    with needed("pyarrow.parquet", "parquet", "Parquet files").ParquetFile(path) as file:
        names = file.schema_arrow.names
        _check_columns(path, names)
        for batch in file.iter_batches(columns=[name for name in ("path", "target") if name in names]):
            for row in batch.to_pylist():
                target = row.get("target")
                yield str(row["path"] or ""), "" if target is None else str(target)


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if "path" not in names:
        held = ", ".join(names) or "nothing"
        raise PetaliteError(f"{path} has no column 'path' (it has {held}); a list of images needs one")
