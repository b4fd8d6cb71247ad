"""The weight formats. Every module in this folder that defines `FORMAT` or `FORMATS` is found; that is all it takes.

from petalite.formats import FORMATS, get_format
packed = get_format("nf4").pack(weight)
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from petalite.errors import PetaliteError, did_you_mean
from petalite.formats.base import Format

__all__ = ["FORMATS", "Format", "get_format"]


def _discover() -> dict[str, Format]:
    found: list[Format] = []
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        found += getattr(module, "FORMATS", ())
        found += [module.FORMAT] if hasattr(module, "FORMAT") else []
    return {format.name: format for format in sorted(found, key=lambda format: -format.bits)}


#: Every format by name, from the most bits a weight to the fewest.
FORMATS: Mapping[str, Format] = _discover()


def get_format(name: str) -> Format:
    """The format of that name. Raises PetaliteError for an unknown one, with the nearest."""
    if name not in FORMATS:
        raise PetaliteError(f"unknown format '{name}'{did_you_mean(name, FORMATS)}; formats: {', '.join(FORMATS)}")
    return FORMATS[name]
