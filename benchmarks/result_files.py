"""Where a benchmark's rows go: a CSV whose name says on what machine and with which versions they were measured.

path = result_path(Path("benchmarks/results"), "calibration-time_vit_large_patch16_224")
write_rows(path, [{"method": "clip", "seconds": 41.2}])
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from petalite.files import atomic
from petalite.measure.environment import environment, hardware


def result_path(folder: Path, label: str, *packages: str, ending: str = ".csv") -> Path:
    """`LABEL_MACHINE_torch-VERSION.csv` in a folder; the versions of further packages follow torch's."""
    versions = "-".join(f"{package}-{metadata.version(package)}" for package in ("torch", *packages))
    return folder / f"{label}_{machine_name()}_{versions}{ending}".replace("+", "-")


def machine_name() -> str:
    """This machine as a part of a file's name: `NVIDIA-H200`."""
    return hardware(environment()).replace(", ", "-").replace(" ", "-").replace("/", "-")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write a CSV, in place of what was there: `columns` in their order (the first row's, where none are named).

    What a row lacks is left empty.
    """
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns or rows[0]), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
