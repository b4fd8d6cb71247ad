"""Ways to pack the same weights in the same bytes: round to nearest, HQQ, clipping, error feedback, reconstruction.

    python benchmarks/quantizers.py runs/flowers/checkpoints/fp32 --data flowers102 --formats int4,int3 \
        --also search=runs/search/checkpoint --also recovered=runs/recovered/checkpoints/mixed

Each row is a checkpoint on disk (whole folder), evaluated in fp32 on the validation and test images together, and
compared with the parent on the same images: points of top-1 lost with the paired 95 % interval, agreement, KL divergence.
HQQ's codes, scales and zero points come from the hqq package (`pip install hqq`) and are stored as Petalite stores its
own, so that bytes are equal. `--also NAME=FOLDER` adds checkpoints made elsewhere.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from result_files import write_rows
from torch import Tensor

from petalite.budget.sensitivity import divergence
from petalite.calibration import calibrate, calibration_pixels
from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.data import ImageData, Preprocess, open_data
from petalite.device import resolve_device
from petalite.engine import load
from petalite.evaluation import logits_of
from petalite.formats import get_format
from petalite.formats.base import Packed
from petalite.formats.grid import Scales, UniformGrid
from petalite.measure.accuracy import score
from petalite.plan import Plan, in_block
from petalite.quantization import apply_plan

COLUMNS = ("format", "method", "disk_bytes", "ratio", "top1", "drop_points", "drop_ci95_low", "drop_ci95_high", "agreement",
           "kl_divergence", "seconds", "images")  # fmt: skip


def hqq(parent: Checkpoint, plan: Plan) -> dict[str, Packed]:
    """The layers inside the blocks as the hqq package packs them, in Petalite's tensors."""
    from hqq.core.quantize import Quantizer

    packed = {}
    for name, stored in plan.layers.items():
        if not in_block(name):
            continue
        grid = get_format(stored).grid
        if not isinstance(grid, UniformGrid) or grid.symmetric or grid.group is None:
            raise SystemExit(f"hqq packs groups with zero points, not {stored}; leave hqq out of --methods for it")
        weight = parent.tensors[f"{name}.weight"].float()
        if weight.shape[1] % grid.group:
            raise SystemExit(f"hqq takes no groups of {grid.group} in rows of {weight.shape[1]}; leave {stored} out")
        codes, meta = Quantizer.quantize(
            weight, nbits=grid.bits, group_size=grid.group, channel_wise=True, axis=1, optimize=True, bitpack=False,
            device="cpu", compute_dtype=torch.float32,
        )  # fmt: skip
        shape = (weight.shape[0], weight.shape[1] // grid.group)
        scales = Scales(meta["scale"].float().reshape(shape), meta["zero"].float().reshape(shape))
        packed[name] = grid.pack(codes.reshape(weight.shape).to(torch.uint8), scales)
    return packed


def main() -> None:
    """Build, evaluate, print and write the table."""
    arguments = parse()
    device = resolve_device(arguments.device)
    parent, images = read_checkpoint(arguments.checkpoint), open_data(arguments.data)
    pixels = calibration_pixels(images, Preprocess.from_config(parent.config), arguments.images)
    base, rows = outputs(parent, images, device), []
    for name in arguments.formats.split(","):
        plan = Plan.uniform(name, rest="bf16", layers=parent.outline.layers, edges=arguments.edges)
        for method in arguments.methods.split(","):
            with tempfile.TemporaryDirectory() as folder:
                if method == "hqq":
                    calibrated, seconds = hqq(parent, plan), None
                else:
                    found = calibrate(parent, plan, pixels, method=method, device=device)
                    calibrated, seconds = found.packed, found.seconds
                built = apply_plan(parent, replace(plan), Path(folder) / "built", calibrated=calibrated)
                rows.append(row(name, method, built, parent, images, base, device, seconds))
            print(*rows[-1].values(), sep="\t", flush=True)
    for text in arguments.also:
        name, _, path = text.partition("=")
        built = read_checkpoint(path)
        rows.append(row(built.plan.format, name, built, parent, images, base, device, None))
        print(*rows[-1].values(), sep="\t", flush=True)
    if arguments.out:
        write_rows(arguments.out, rows, COLUMNS)


def outputs(checkpoint: Checkpoint, images: ImageData, device: torch.device) -> Tensor:
    """Logits on the validation and test images, in fp32."""
    classifier = load(checkpoint, str(device), compute="fp32")
    return torch.cat([logits_of(classifier, images.splits[split]) for split in ("valid", "test")])


def row(
    format: str, method: str, built: Checkpoint, parent: Checkpoint, images: ImageData, base: Tensor, device: torch.device,
    seconds: float | None,
) -> dict[str, Any]:  # fmt: skip
    """One line of the table."""
    targets = torch.tensor([sample.target for split in ("valid", "test") for sample in images.splits[split]])
    logits = outputs(built, images, device)
    accuracy = score(logits, targets, base)
    low, high = accuracy["drop_ci95"]
    values = (
        format, method, built.disk_bytes, round(parent.disk_bytes / built.disk_bytes, 3), round(accuracy["top1"], 5),
        round(accuracy["drop_points"], 3), round(low, 3), round(high, 3), round(accuracy["agreement"], 5),
        round(divergence(base, logits), 5), None if seconds is None else round(seconds, 1), len(targets),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--formats", default="int4,int3")
    parser.add_argument("--methods", default="nearest,hqq,clip,gptq,reconstruct")
    parser.add_argument("--edges", default="int8-channel", help="format of the embeddings and the head")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
