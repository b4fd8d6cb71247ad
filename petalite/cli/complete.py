"""What the shell completes: names of formats, attention backends, models and the like, without waiting for torch.

    $ petalite quantize runs/demo/checkpoints/fp32 --format in<TAB>       # int8 int8-channel int4 …

`petalite --install-completion` sets it up for bash, zsh or fish. Names that only torch or timm can list are listed once
and kept in the cache, with what they depend on: the first <TAB> after an update takes two seconds, the others a tenth.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from petalite.errors import PetaliteError
from petalite.files import cache_dir, write_json

#: What a completion function is: the word so far -> the words that it may become.
Complete = Callable[[str], list[str]]
_PACKAGE = Path(__file__).resolve().parents[1]


def _starting(words: Iterable[str], incomplete: str) -> list[str]:
    """The words that start so. In a list separated by commas, the last one is completed."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{word}" for word in words if word.startswith(last)]


def fixed(*words: str) -> Complete:
    """A completion of words that are always the same."""
    return lambda incomplete: _starting(words, incomplete)


def formats(incomplete: str) -> list[str]:
    """Weight formats."""
    return _starting(_kept("formats", _formats), incomplete)


def attention(incomplete: str) -> list[str]:
    """Attention backends."""
    return _starting(["auto", *_kept("attention", _attention)], incomplete)


def models(incomplete: str) -> list[str]:
    """timm's names of models that Petalite supports, and folders."""
    return _starting(_kept("models", _models), incomplete) or _folders(incomplete)


def data(incomplete: str) -> list[str]:
    """The embedded set, and folders."""
    return [*_starting(["digits"], incomplete), *_folders(incomplete)]


kinds = fixed("formats", "attention", "compute", "engines", "models", "recipes", "targets")
targets = fixed("onnx", "openvino", "pt2", "timm", "transformers")
inputs = fixed("none", "pixels", "image")
computes = fixed("auto", "fp32", "bf16", "fp16", "int8", "fp8")
engines = fixed("auto", "fused", "openvino", "module")
devices = fixed("auto", "cpu", "cuda", "cuda:0", "cuda:all")
splits = fixed("train", "valid", "test")
calibrations = fixed("nearest", "clip", "gptq", "reconstruct")


def _formats() -> list[str]:
    from petalite.formats import FORMATS

    return list(FORMATS)


def _attention() -> list[str]:
    from petalite.doctor import listing

    return [row["name"] for row in listing("attention", "cpu")]


def _models() -> list[str]:
    from petalite.doctor import listing

    return [row["name"] for row in listing("models")]


def _kept(kind: str, names: Callable[[], list[str]]) -> list[str]:
    """`names()`, from the cache where nothing that it depends on has changed since."""
    path = cache_dir() / "completion" / f"{kind}-{_state()}.json"
    try:
        return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        found = names()
    try:
        write_json(path, found)
    except (PetaliteError, OSError):  # a cache that cannot be written costs time, not the completion
        return found
    return found


def _state() -> str:
    """Changes when a format, a backend or timm does."""
    sources = [
        *sorted((_PACKAGE / "formats").glob("*.py")),
        *sorted((_PACKAGE / "attention").glob("*.py")),
        _PACKAGE / "doctor/catalogue.py",
    ]
    facts = [(path.name, path.stat().st_mtime_ns) for path in sources]
    return hashlib.sha256(repr((facts, _version("timm"))).encode()).hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _folders(incomplete: str) -> list[str]:
    """Folders that start so, each with a slash behind it."""
    start = Path(incomplete)
    parent, name = (start, "") if incomplete.endswith("/") or not incomplete else (start.parent, start.name)
    try:
        found = sorted(entry for entry in parent.iterdir() if entry.is_dir() and entry.name.startswith(name))
    except OSError:
        return []
    return [f"{entry}/" for entry in found if name.startswith(".") or not entry.name.startswith(".")]
