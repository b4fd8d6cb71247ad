"""How long calibrating a model takes, and how much device memory: random weights and pixels at the model's shape.

python benchmarks/calibration_time.py vit_large_patch16_224 --format int4 --methods clip,gptq --images 256
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from result_files import result_path, write_rows

from petalite.calibration import calibrate
from petalite.checkpoint import read_checkpoint
from petalite.data import Preprocess
from petalite.device import resolve_device
from petalite.plan import Plan
from petalite.speed import random_checkpoints


def main() -> None:
    """Calibrate with each method, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a timm name")
    parser.add_argument("--format", default="int4")
    parser.add_argument("--methods", default="clip,gptq")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    device = resolve_device(options.device)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        parent = read_checkpoint(random_checkpoints(options.model, ["fp32"], folder)["fp32"])
        size = Preprocess.from_config(parent.config).size
        pixels = torch.randint(0, 256, (options.images, 3, *size), dtype=torch.uint8)
        for method in options.methods.split(","):
            plan = Plan.uniform(options.format, rest="bf16", layers=parent.outline.layers)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            calibrate(parent, plan, pixels, method=method, device=device)
            seconds = round(time.perf_counter() - started, 1)
            peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
            rows.append(
                {
                    "model": options.model,
                    "format": options.format,
                    "method": method,
                    "images": options.images,
                    "seconds": seconds,
                    "peak_device_bytes": peak,
                }
            )
            print(*rows[-1].values(), sep="\t", flush=True)
    path = result_path(options.out, f"calibration-time_{options.model}")
    write_rows(path, rows)
    print(path)


if __name__ == "__main__":
    main()
