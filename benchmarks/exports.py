"""Does every export answer as Petalite does? Each target, plain and in 8 bits, on all test images: a row each in a CSV.

    python benchmarks/exports.py --data flowers102 --plain runs/flowers/checkpoints/fp32 --int8 runs/int8-channel

An export that fails its check has its row too, with the reason. Rows that are in the CSV already are not made again, so
a run that was cut short goes on where it was; `--minutes` cuts it short.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

from result_files import result_path, write_rows

from petalite.checkpoint import read_checkpoint
from petalite.data import open_data
from petalite.errors import PetaliteError
from petalite.export import TARGETS, export

COLUMNS = (
    *("target", "products", "preprocess", "checkpoint", "status", "reason", "runtime", "images", "top1", "top1_low"),
    *("top1_high", "petalite_top1", "agreement", "required", "largest_difference", "disk_bytes", "seconds"),
)


def main() -> None:
    """Read the arguments, export and check everything that is not in the CSV yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--plain", type=Path, required=True)
    parser.add_argument("--int8", type=Path, required=True)
    parser.add_argument("--images", type=int)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    model = str(read_checkpoint(options.plain).config["architecture"]).removesuffix("_patch16_224")
    path = result_path(options.out, f"exports_{model}-{open_data(options.data).name}")
    rows = _read(path)
    done = {(row["target"], row["products"], row["preprocess"]) for row in rows}
    for target in TARGETS.values():
        for inputs in target.inputs:
            for products in ("plain", "int8") if target.int8 else ("plain",):
                if (target.name, products, inputs) in done or time.monotonic() > end:
                    continue
                checkpoint = options.int8 if products == "int8" else options.plain
                rows.append(_row(target.name, products, inputs, checkpoint, options))
                write_rows(path, rows, COLUMNS)
                print(rows[-1], flush=True)


def _row(target: str, products: str, inputs: str, checkpoint: Path, options: argparse.Namespace) -> dict[str, Any]:
    row = {"target": target, "products": products, "preprocess": inputs, "checkpoint": checkpoint.name}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = export(
                checkpoint, target, Path(folder) / "export", data=options.data, int8=products == "int8",
                preprocess=inputs, images=options.images,
            )  # fmt: skip
        except PetaliteError as error:
            return {**row, "status": "failed", "reason": str(error)}
    accuracy = found["accuracy"]
    low, high = accuracy["top1_ci95"]
    known = {key: found[key] for key in ("runtime", "images", "agreement", "required", "disk_bytes")}
    return {
        **row, **known, "status": "ok", "top1": f"{accuracy['top1']:.6f}", "top1_low": f"{low:.6f}",
        "top1_high": f"{high:.6f}", "petalite_top1": f"{found['petalite']['top1']:.6f}",
        "agreement": f"{found['agreement']:.6f}", "largest_difference": f"{found['largest_difference']:.3g}",
        "seconds": f"{time.monotonic() - began:.1f}",
    }  # fmt: skip


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
