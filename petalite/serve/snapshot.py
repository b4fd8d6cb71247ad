"""Private copies of the checkpoints being served: what happens to a folder afterwards takes effect with a reload only.

    copies = Copies(settings.models)
    folders = copies.take()            # {"int8": ["/tmp/petalite-serve-…/1/int8", "runs/int8"]}
    await copies.hand_to(pool.reload)  # takes new ones, and keeps those with which the pool is content

A worker that has to be replaced reads the copy that its siblings run, though the folder may hold another version by then,
half of one, or nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from petalite.errors import PetaliteError

_ENDINGS = {".json", ".safetensors", ".md"}


class Copies:
    """Copies of checkpoint folders under one temporary folder."""

    def __init__(self, models: Mapping[str, Path]) -> None:
        self._models = models
        self._root = Path(tempfile.mkdtemp(prefix="petalite-serve-"))
        self._numbers = itertools.count(1)
        self._current: Path | None = None

    def take(self) -> dict[str, list[str]]:
        """Copy every checkpoint as it is now: name -> [copy, folder]. Raises PetaliteError where that fails."""
        number = self._root / str(next(self._numbers))
        folders = {}
        try:
            for name, source in self._models.items():
                target = number / name
                target.mkdir(parents=True)
                for file in source.iterdir():
                    if file.is_file() and file.suffix in _ENDINGS:
                        shutil.copyfile(file, target / file.name)
                folders[name] = [str(target), str(source)]
        except OSError as error:
            shutil.rmtree(number, ignore_errors=True)
            raise PetaliteError(
                f"the checkpoint cannot be copied to {self._root.parent}: {error.strerror or error}"
            ) from error
        return folders

    async def hand_to(self, load: Callable[[Mapping[str, list[str]]], Awaitable[None]]) -> None:
        """Copies of what the folders hold now, for `load`; they are kept unless it raises. Raises PetaliteError."""
        folders = await asyncio.to_thread(self.take)
        try:
            await load(folders)
        except BaseException:
            self.drop(folders)
            raise
        self.keep(folders)

    def keep(self, folders: Mapping[str, list[str]]) -> None:
        """These copies are served from now on: remove the ones before."""
        before, self._current = self._current, _parent(folders)
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)

    def drop(self, folders: Mapping[str, list[str]]) -> None:
        """These copies were refused: remove them."""
        shutil.rmtree(_parent(folders), ignore_errors=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._root, ignore_errors=True)


def _parent(folders: Mapping[str, list[str]]) -> Path:
    return Path(next(iter(folders.values()))[0]).parent
