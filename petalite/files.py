"""Writing files so that nothing is ever half-written: a temporary name first, then a rename.

with atomic(folder / "model.safetensors") as temporary:
    save_file(tensors, temporary)
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from petalite.errors import PetaliteError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on failure it is removed.

    Raises PetaliteError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except Exception as error:
        raise _explained(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path` (replacing it), on failure it is removed."""
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    except Exception as error:
        raise _explained(error, path) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _explained(error: Exception, path: Path) -> Exception:
    """A one-line PetaliteError for a full disk or a folder that cannot be written; any other error as it is."""
    # safetensors reports a full disk as its own exception with the operating system's text inside
    if (isinstance(error, OSError) and error.errno in _FULL) or "No space left on device" in str(error):
        return PetaliteError(f"no space left to write {path}; free some space or choose another --out")
    if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)) or (
        isinstance(error, OSError) and error.errno == errno.EROFS
    ):
        return PetaliteError(f"cannot write {path}: {error.strerror or error}; choose another --out")
    return error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises PetaliteError when it is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PetaliteError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PetaliteError(f"{path} cannot be read as JSON: {error}") from error


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all the files in a folder."""
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def cache_dir() -> Path:
    """Where Petalite keeps what it can make again: `$PETALITE_CACHE`, else `$XDG_CACHE_HOME/petalite`, else `~/.cache/petalite`."""
    if explicit := os.environ.get("PETALITE_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "petalite"


#: What only folders hold that Petalite made.
_MARKS = ("run.json", "results.json", "config.json", "profile.json", "train", "ablation")


def prepare_out(out: Path, *, resume: bool | None = None, force: bool = False) -> Path:
    """Check that the output folder may be written: missing, empty, or allowed by `resume` or `force`.

    resume: None where the work cannot be resumed. `force` empties the folder, but only one that Petalite made (it holds
    one of `_MARKS`): anything else is refused rather than deleted. The folder itself is made by the first file written.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise PetaliteError(f"{out} is a file; --out needs a folder")
    if out.is_dir() and any(out.iterdir()):
        if force:
            if not any((out / mark).exists() for mark in _MARKS):
                raise PetaliteError(f"{out} does not look like an output of petalite; --force will not empty it")
            shutil.rmtree(out)
        elif not resume:
            other = "add --resume to go on with it or" if resume is not None else "name another folder, or add"
            raise PetaliteError(f"{out} is not empty; {other} --force to start again")
        else:
            _clear_leftovers(out)
    return out


def _clear_leftovers(out: Path) -> None:
    """Remove what a killed process left under its temporary names."""
    for leftover in out.rglob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
