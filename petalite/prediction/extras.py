"""Packages that not everyone needs: imported when they are, and named with their extra where they are missing.

parquet = needed("pyarrow.parquet", "parquet", "Parquet files")
"""

from __future__ import annotations

import importlib
from typing import Any

from petalite.errors import PetaliteError


def needed(module: str, extra: str, what: str) -> Any:
    """The module. Raises PetaliteError, saying what to install, where its package is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise PetaliteError(f"{what} need {package}, which is not installed: pip install 'petalite[{extra}]'") from None
