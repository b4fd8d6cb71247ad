"""Compiled graphs on disk, so that a second start neither expands weights nor compiles.

    cache = CompiledCache(fingerprint(checkpoint, "int8", processor))
    kept = cache.load("8", settings)                # None where there is none, or it cannot be used
    cache.keep("8", compiled)

They lie in `openvino/` of the cache folder (`$PETALITE_CACHE`, else ~/.cache/petalite), by what the checkpoint holds
(not where it lies), the processor, and the versions of OpenVINO and Petalite. A file is mapped into memory, not read,
and takes part in nothing else: one that is damaged or does not fit is made again. Those used least recently go first
where all of them together pass a limit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petalite import __version__
from petalite.engine.openvino_runtime import core, ov
from petalite.engine.processor import Processor
from petalite.errors import PetaliteError
from petalite.files import atomic, cache_dir

if TYPE_CHECKING:
    from petalite.checkpoint import Checkpoint

#: Bytes that all files together may take.
LIMIT = 4 << 30


def fingerprint(checkpoint: Checkpoint, compute: str, processor: Processor) -> str:
    """A name for all that decides what is compiled: the checkpoint's content, the precision, processor and versions."""
    digest = hashlib.sha256()
    facts = [checkpoint.config, checkpoint.plan.as_dict(), compute, processor.describe(), ov.get_version(), __version__]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(checkpoint.tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(_bytes_of(tensor)))
    return digest.hexdigest()[:32]


def _bytes_of(tensor: Any) -> Any:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def used(path: Path) -> None:
    """Note that a file of the cache was read, so that it stays when others have to go. A read-only cache is none the worse."""
    with suppress(OSError):
        os.utime(path)


@dataclass(frozen=True)
class Kept:
    """A compiled graph and the mapped file that its weights lie in, which has to live as long as it is used."""

    compiled: Any
    mapped: Any


class CompiledCache:
    """The graphs of one fingerprint. `folder`: where they lie."""

    def __init__(self, name: str, folder: Path | None = None, limit: int = LIMIT) -> None:
        self.name, self.limit = name, limit
        self.folder = folder or cache_dir() / "openvino"

    def load(self, graph: str, settings: Mapping[str, Any]) -> Kept | None:
        """A graph that was kept, compiled for `settings`; None where there is none that can be used."""
        path = self._path(graph)
        try:
            mapped = np.memmap(path, np.uint8, "c")  # OpenVINO takes no array that is read-only
            used(path)
            return Kept(core().import_model(ov.Tensor(mapped, shared_memory=True), "CPU", dict(settings)), mapped)
        except OSError:  # there is none, or the folder cannot be read
            return None
        except (RuntimeError, ValueError):  # damaged, or of another build of OpenVINO: it is made again
            path.unlink(missing_ok=True)
            return None

    def keep(self, graph: str, compiled: Any) -> None:
        """Write a compiled graph. A disk that is full or a folder that cannot be written only costs the next start."""
        try:
            blob = compiled.export_model()
            with atomic(self._path(graph)) as temporary:
                temporary.write_bytes(blob.getbuffer())
            self._make_room()
        except (PetaliteError, OSError, RuntimeError):
            return

    def _path(self, graph: str) -> Path:
        return self.folder / f"{self.name}-{graph}.blob"

    def _make_room(self) -> None:
        files = [*self.folder.glob("*.blob"), *self.folder.glob("*.json")]  # and what `petalite.engine.start` keeps
        files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in files:
            total += path.stat().st_size
            if total > self.limit:
                path.unlink(missing_ok=True)
