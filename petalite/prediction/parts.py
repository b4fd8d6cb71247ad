"""What a run has written so far: a folder of parts beside the output, one a unit, each whole or not there at all.

    parts = Parts(Path("predictions.csv"), table)
    parts.open(resume=True)
    parts.settle(settings)                             # predictions.csv.parts/run.json
    if not parts.holds(number, unit): parts.add(number, encoded(unit, rows, table))
    parts.join(number_of_units)                        # predictions.csv; the folder is gone

A part's name says which unit it is of and how many images and errors it holds (`00000007-1024-0-5f1c….csv`), so that going
on needs no more than a look at the folder. A part is an output of its own: what is there can be read at any time.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petalite.errors import PetaliteError
from petalite.files import atomic, read_json, write_json
from petalite.prediction.rows import Row
from petalite.prediction.sources import Files, Unit
from petalite.prediction.tables import Table

_NAME = re.compile(r"(\d{8,})-(\d+)-(\d+)-([0-9a-f]{16})")


@dataclass(frozen=True)
class Part:
    """A unit's predictions, encoded: `data` is what its file holds."""

    digest: str
    images: int
    errors: int
    data: bytes


def encoded(unit: Unit, rows: Iterable[Row], table: Table) -> Part:
    """The part of a unit; rows are encoded as they come."""
    images = errors = 0

    def counted() -> Iterator[Row]:
        nonlocal images, errors
        for row in rows:
            images += 1
            errors += bool(row["error"])
            yield row

    file = io.BytesIO()
    table.write(counted(), file)
    if isinstance(unit, Files) and images != len(unit.chunk):
        raise RuntimeError(f"{images} rows for {len(unit.chunk)} images")
    return Part(unit.digest(), images, errors, file.getvalue())


class Parts:
    """The folder `OUT.parts`, and the output that its parts become."""

    def __init__(self, out: Path, table: Table) -> None:
        self.out, self.table = out, table
        self.folder = out.with_name(f"{out.name}.parts")
        self._found: dict[int, tuple[Path, int, int, str]] = {}  # number -> file, images, errors, digest
        self._record = self.folder / "run.json"
        self.resumed = 0  # images that were there when it was opened

    @property
    def images(self) -> int:
        """Images in the parts that are there."""
        return sum(images for _, images, _, _ in self._found.values())

    @property
    def errors(self) -> int:
        """Those of them that could not be read."""
        return sum(errors for _, _, errors, _ in self._found.values())

    def check_may_write(self, resume: bool, force: bool) -> None:
        """Raise PetaliteError where something is there that neither `resume` nor `force` gives leave to touch."""
        if resume and force:
            raise PetaliteError("--resume goes on and --force starts again; choose one")
        if self.out.is_dir():
            raise PetaliteError(f"{self.out} is a folder; --out needs a file")
        if resume or force:
            return
        if self.folder.exists():
            raise PetaliteError(
                f"{self.folder} holds a run that has not ended; add --resume to go on with it or --force to start again"
            )
        if self.out.exists():
            raise PetaliteError(
                f"{self.out} exists; add --force to replace it, or --resume to check that it is complete"
            )

    def finished(self) -> bool:
        """Whether the output is there and no run is under way."""
        return self.out.exists() and not self.folder.exists()

    def open(self, resume: bool) -> None:
        """See what is there to go on with; nothing of it is kept without `resume`."""
        if not resume or not self._record.exists():  # killed before it began
            self._remove()
            return
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        for file in self.folder.iterdir():
            if match := _NAME.fullmatch(file.stem):
                self._found[int(match[1])] = (file, int(match[2]), int(match[3]), match[4])
        self.resumed = self.images

    def settle(self, settings: dict[str, Any]) -> None:
        """Say what rows depend on besides the images, as JSON values: before the first part is added.

        Raises PetaliteError where the parts that are there were made with other settings.
        """
        if not self._record.exists():
            write_json(self._record, {"schema": 1, **settings})
            return
        before = read_json(self._record)
        for name, now in settings.items():
            if before.get(name) != now:
                raise PetaliteError(
                    f"{self.folder} was begun with another {name.replace('_', ' ')} ({_short(before.get(name))}, now "
                    f"{_short(now)}); use the same, or --force to start again"
                )

    def holds(self, number: int, unit: Unit) -> bool:
        """Whether a unit has been predicted. Raises PetaliteError where its part is one of other images."""
        if number not in self._found:
            return False
        file, _, _, digest = self._found[number]
        if digest != unit.digest():
            raise PetaliteError(
                f"{file} holds other images than the sources name now; name the same ones, or --force to start again"
            )
        return True

    def add(self, number: int, part: Part) -> None:
        """Write a part: whole, or not at all. Raises PetaliteError, saying what is kept, when the disk is full."""
        path = self.folder / f"{number:08d}-{part.images}-{part.errors}-{part.digest}{self.table.ending}"
        try:
            with atomic(path) as temporary:
                temporary.write_bytes(part.data)
        except PetaliteError as error:
            raise PetaliteError(f"{error}{self.kept()}") from error
        self._found[number] = (path, part.images, part.errors, part.digest)

    def join(self, units: int) -> None:
        """Parts 0 … `units` - 1 become the output, and the folder goes. Raises PetaliteError where there are more."""
        if beyond := [number for number in self._found if number >= units]:
            raise PetaliteError(
                f"{self._found[min(beyond)][0]} holds images that the sources do not name now; name the same ones, "
                "or --force to start again"
            )
        try:
            with atomic(self.out) as temporary, temporary.open("wb") as file:
                self.table.join([self._found[number][0] for number in range(units)], file)
        except PetaliteError as error:
            raise PetaliteError(f"{error}{self.kept()}") from error
        self._remove()

    def drop_if_empty(self) -> None:
        """Leave no folder behind where nothing has been predicted."""
        if self.folder.is_dir() and not any(_NAME.fullmatch(file.stem) for file in self.folder.iterdir()):
            self._remove()

    def kept(self) -> str:
        """What an error has to say of the parts that are there."""
        return f"; {self.images:,} images are kept in {self.folder}: --resume goes on with them" if self._found else ""

    def _remove(self) -> None:
        """At once under this name, so that a run which is killed here finds all of the folder or nothing."""
        trash = self.folder.with_name(f".{self.folder.name}.tmp")
        shutil.rmtree(trash, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)


def _short(value: Any) -> str:
    return str(value)[:24]
