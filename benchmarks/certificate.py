"""Does the certificate hold? Many random halvings of valid + test into images to search with and images held out.

    python benchmarks/certificate.py runs/flowers/checkpoints/fp32 --data flowers102 --tries runs/search-*/tried …

For each halving the search half is halved once more: on one part the smallest plan within the budget is chosen among
the plans given, on the other it is certified, as `petalite search` does with valid and test. Then the drop on the
held-out half, which has seen neither, is compared with the certified bound. Two bounds are counted: the one-sided 95 %
bound of the certificate, and the same at other confidences.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from torch import Tensor

from petalite.budget.certificate import certificate
from petalite.checkpoint import read_checkpoint
from petalite.data import open_data
from petalite.engine import load
from petalite.evaluation import logits_of

CONFIDENCES = (0.9, 0.95, 0.975, 0.99)


def main() -> None:
    """Count how often the held-out drop exceeds the bound."""
    arguments = parse()
    images = open_data(arguments.data)
    samples = [*images.splits["valid"], *images.splits["test"]]
    targets = torch.tensor([sample.target for sample in samples])

    def right(path: Path) -> Tensor:
        logits = logits_of(load(path, arguments.device), samples)
        return logits.argmax(1) == targets

    base = right(arguments.checkpoint)
    plans = sorted(arguments.plans, key=lambda path: read_checkpoint(path).disk_bytes)
    answers = [right(path) for path in plans]
    generator = torch.Generator().manual_seed(arguments.seed)
    rows, over = [], dict.fromkeys(CONFIDENCES, 0)
    for halving in range(arguments.halvings):
        order = torch.randperm(len(samples), generator=generator)
        half, quarter = len(order) // 2, len(order) // 4
        choosing, certifying, held_out = order[:quarter], order[quarter:half], order[half:]
        drops = [drop(base, answer, choosing) for answer in answers]
        kept = [place for place, value in enumerate(drops) if value <= arguments.max_drop]
        place = kept[0] if kept else min(range(len(drops)), key=drops.__getitem__)
        lost, gained = changes(base, answers[place], certifying)
        truth = drop(base, answers[place], held_out)
        row = {"halving": halving, "plan": plans[place].name, "lost": lost, "gained": gained, "images": len(certifying),
               "held_out_drop": round(truth, 4)}  # fmt: skip
        for confidence in CONFIDENCES:
            bound = certificate(lost, gained, len(certifying), arguments.max_drop, confidence).bound_points
            row[f"bound_{100 * confidence:g}"] = round(bound, 4)
            over[confidence] += truth > bound
        rows.append(row)
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for confidence, count in over.items():
        print(f"{100 * confidence:g} %: the held-out drop exceeds the bound in {count} of {arguments.halvings} halvings")


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
    parser.add_argument("--plans", type=Path, nargs="+", required=True, help="checkpoints that a search could choose")
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--halvings", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
