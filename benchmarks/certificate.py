"""Does the certificate hold? Many random halvings of valid + test into images to search with and images held out.

    petalite search runs/flowers/checkpoints/fp32 --data flowers102 --out runs/search
    python benchmarks/certificate.py runs/flowers/checkpoints/fp32 --data flowers102 \
        --estimates runs/search/estimates.json --out certificate.csv

The plans are those that the integer program gives for a range of damages, built as `petalite search` builds them. For
each halving the search half is halved once more: on one part the smallest plan within the budget is chosen, on the other
it is certified, as with valid and test. Then the drop on the held-out half, which has seen neither, is compared with the
certified bound, which bounds the drop on all images there could be: a held-out half has chance of its own on top.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from result_files import write_rows
from torch import Tensor

from petalite.budget.certificate import certificate
from petalite.budget.record import problem_of
from petalite.calibration import calibrate, calibration_pixels
from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.data import Preprocess, open_data
from petalite.device import resolve_device
from petalite.engine import load
from petalite.evaluation import logits_of
from petalite.files import read_json
from petalite.quantization import apply_plan

CONFIDENCES = (0.9, 0.95, 0.975, 0.99)


def main() -> None:
    """Count how often the held-out drop exceeds the bound."""
    arguments = parse()
    images, parent = open_data(arguments.data), read_checkpoint(arguments.checkpoint)
    samples = [*images.splits["valid"], *images.splits["test"]]
    targets = torch.tensor([sample.target for sample in samples])

    def right(checkpoint: Checkpoint, compute: str = "auto") -> Tensor:
        logits = logits_of(load(checkpoint, arguments.device, compute=compute), samples)
        return logits.argmax(1) == targets

    base = right(parent, "fp32")
    pixels = calibration_pixels(images, Preprocess.from_config(parent.config), 256)
    problem = problem_of(read_json(arguments.estimates)["problem"])
    sizes, answers = [], []
    for most in np.geomspace(arguments.least, arguments.most, arguments.plans):  # from the gentlest to the harshest
        proposal = problem.solve(float(most))
        if proposal is None:
            continue
        found = calibrate(parent, proposal.plan, pixels, device=resolve_device(arguments.device))
        with tempfile.TemporaryDirectory() as folder:
            built = apply_plan(parent, proposal.plan, Path(folder) / "built", calibrated=found.packed)
            sizes.append(built.disk_bytes)
            answers.append(right(built))
        whole = drop(base, answers[-1], torch.arange(len(samples)))
        print(f"{most:.4f} nats: {parent.disk_bytes / sizes[-1]:.2f}x, drop {whole:+.2f}", flush=True)
    generator = torch.Generator().manual_seed(arguments.seed)
    rows, over = [], dict.fromkeys(CONFIDENCES, 0)
    for halving in range(arguments.halvings):
        order = torch.randperm(len(samples), generator=generator)
        half, quarter = len(order) // 2, len(order) // 4
        choosing, certifying, held_out = order[:quarter], order[quarter:half], order[half:]
        drops = [drop(base, answer, choosing) for answer in answers]
        kept = [place for place, value in enumerate(drops) if value <= arguments.max_drop]
        place = min(kept, key=sizes.__getitem__) if kept else min(range(len(drops)), key=drops.__getitem__)
        lost, gained = changes(base, answers[place], certifying)
        truth = drop(base, answers[place], held_out)
        row = {
            "halving": halving,
            "ratio": round(parent.disk_bytes / sizes[place], 3),
            "lost": lost,
            "gained": gained,
            "images": len(certifying),
            "held_out_drop": round(truth, 4),
        }
        for confidence in CONFIDENCES:
            bound = certificate(lost, gained, len(certifying), arguments.max_drop, confidence).bound_points
            row[f"bound_{100 * confidence:g}"] = round(bound, 4)
            over[confidence] += truth > bound
        rows.append(row)
    write_rows(arguments.out, rows)
    for confidence, count in over.items():
        print(
            f"{100 * confidence:g} %: the held-out drop exceeds the bound in {count} of {arguments.halvings} halvings"
        )


def changes(base: Tensor, other: Tensor, chosen: Tensor) -> tuple[int, int]:
    """Images lost and gained among the chosen."""
    before, after = base[chosen], other[chosen]
    return int((before & ~after).sum()), int((after & ~before).sum())


def drop(base: Tensor, other: Tensor, chosen: Tensor) -> float:
    """Points of top-1 lost on the chosen images."""
    lost, gained = changes(base, other, chosen)
    return 100 * (lost - gained) / len(chosen)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--estimates", type=Path, required=True, help="estimates.json of a search on the same data")
    parser.add_argument("--plans", type=int, default=8)
    parser.add_argument("--least", type=float, default=1e-3, help="nats of damage of the gentlest plan")
    parser.add_argument("--most", type=float, default=0.03, help="nats of damage of the harshest plan")
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--halvings", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
