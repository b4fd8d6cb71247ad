"""What merging tokens makes of the engine's speed: schedules side by side in one run, random weights, FP8, one batch size.

    python benchmarks/gpu_merging.py --schedules "7:60,11:50,15:40 7:98,15:49,19:24"

A schedule names blocks (from 0) and how many tokens are merged in each; `none` is always there. All are loaded together
and timed in rounds, in turns. What a schedule costs in accuracy says gpu_accuracy.py.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from gpu_candidates import random_materials
from result_files import result_path, write_rows

from petalite.engine.cuda import Fused
from petalite.engine.graphs import Graphs
from petalite.engine.weights import read_network
from petalite.measure.ceilings import wait_for
from petalite.measure.latency import count_forwards

_ROUNDS = 5


def merges(schedule: str, depth: int) -> tuple[int, ...]:
    """`7:60,11:50` as tokens merged in each of `depth` blocks."""
    found = [0] * depth
    for part in filter(None, schedule.replace("none", "").split(",")):
        block, _, count = part.partition(":")
        found[int(block)] = int(count)
    return tuple(found)


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--schedules", default="7:60,11:50,15:40 7:90,13:60 7:98,15:49 7:98,15:49,19:24 6:90,13:60")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each schedule")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    device = torch.device("cuda", 0)
    checkpoint = random_materials(options.model, device).checkpoint("fp32")
    depth = checkpoint.outline.depth
    runs: dict[str, Graphs] = {}
    for schedule in ["none", *options.schedules.split()]:
        merge = merges(schedule, depth)
        plan = replace(checkpoint.plan, merge=merge if any(merge) else ())
        fused = Fused(read_network(replace(checkpoint, plan=plan)), device, "fp8")
        runs[schedule] = Graphs(fused, (3, *fused.shape.image_size), device)
    shape = (options.batch, 3, *fused.shape.image_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    rates: dict[str, list[float]] = defaultdict(list)
    for graphs in runs.values():
        graphs.forward(pixels)
    for _ in range(_ROUNDS):
        for schedule, graphs in runs.items():
            seconds = options.seconds / _ROUNDS
            passes = count_forwards(lambda graphs=graphs: graphs.forward(pixels), wait_for(device), seconds=seconds)
            rates[schedule].append(options.batch * passes)
    rows = [
        {
            "model": options.model,
            "batch_size": options.batch,
            "compute": "fp8",
            "schedule": schedule,
            "merged_tokens": sum(merges(schedule, depth)),
            "images_per_s": round(median(found), 1),
            "times_none": round(median(found) / median(rates["none"]), 3),
            "rounds": " ".join(f"{rate:.0f}" for rate in found),
        }
        for schedule, found in rates.items()
    ]
    for row in rows:
        print(*row.values(), sep="\t")
    path = result_path(options.out, "gpu-merging")
    write_rows(path, rows)
    print(path)


if __name__ == "__main__":
    main()
