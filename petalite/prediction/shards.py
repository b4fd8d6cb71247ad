"""Images inside tar files, in the WebDataset layout: files that belong together share their name up to the first dot.

    for member in members_of(Path("shard-000.tar")):
        member.source, member.target          # Member("shard-000.tar", "00001.jpg", …), 42 from 00001.cls

Only the headers are read here. The bytes of an image lie in the tar one after the other, so that each process reads those
that it decodes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath

from petalite.data.images import ImageError
from petalite.data.listing import is_image
from petalite.data.samples import Stored

#: An answer's length at most: a class's index or name.
_LABEL_BYTES = 1_000


@dataclass(frozen=True, slots=True)
class Item:
    """An image to predict. `target`: its class's index or name where the source says so; None: ask its folder."""

    source: str | Stored
    target: int | str | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an uncompressed tar: `size` bytes from `offset` on."""

    archive: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        """As if the tar were a folder."""
        return f"{self.archive}/{self.name}"

    def read(self) -> bytes:
        """The bytes. Raises ImageError when they cannot be read, or not all of them."""
        try:
            with open(self.archive, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise ImageError(f"{self} cannot be read: {error.strerror or error}") from error
        if len(data) < self.size:
            raise ImageError(f"{self} is cut off: {self.archive} ends before it does")
        return data


@dataclass(frozen=True, slots=True)
class Unread:
    """What stands for the images of a shard that cannot be read, so that it is a row with its error."""

    archive: str
    why: str

    def __str__(self) -> str:
        """The shard."""
        return self.archive

    def read(self) -> bytes:
        """Raises ImageError, always."""
        raise ImageError(f"{self.archive} {self.why}")


def is_shard(name: str) -> bool:
    """Whether a file's name is that of a shard."""
    return name.lower().endswith(".tar") and not PurePosixPath(name).name.startswith(".")


def members_of(archive: Path) -> Iterator[Item]:
    """The images in a tar, in its order, each with the class in the `.cls` file beside it.

    A tar that cannot be read, or only up to somewhere, and one without images ends with an item whose `read` says so.
    """
    found = False
    for _, group in groupby(_files(archive), key=lambda file: file[0]):
        files = [file for _, file in group]
        label = next((file for file in files if isinstance(file, Member) and file.name.endswith(".cls")), None)
        for file in files:
            if isinstance(file, Unread) or is_image(PurePosixPath(file.name).name):
                found = True
                yield Item(file, None if label is None else _label(label))
    if not found:
        yield Item(Unread(str(archive), "holds no images"))


def _files(archive: Path) -> Iterator[tuple[str, Member | Unread]]:
    """Each file with its name up to the first dot of its own name; where the tar is damaged, that it is."""
    some = ""
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # or it would keep every header
                some = " from here on"
                if member.isreg():
                    path = PurePosixPath(member.name)
                    key = str(path.parent / path.name.partition(".")[0])
                    yield key, Member(str(archive), member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        yield "", Unread(str(archive), f"cannot be read as a tar{some}: {why}")


def _label(file: Member) -> int | str | None:
    """The class that a `.cls` file names: an index, or a name."""
    try:
        text = file.read()[:_LABEL_BYTES].decode("utf-8", "replace").strip()
    except ImageError:
        return None
    return int(text) if text.isdecimal() else text or None
