"""Makes the choices of kernels that come with Petalite for this GPU: `petalite/engine/known/NAME.json`.

    python benchmarks/gpu_trials.py --models vit_large_patch16_224,vit_base_patch16_224 --computes bf16,fp8,int8

Runs the engine of each model (random weights) in each precision on every batch bucket, with trials of its own (what
stands in the cache or came with Petalite is not asked), and writes the names that they found beside those that came with
Petalite for other shapes. Let nothing else run on the GPU meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import torch
from gpu_candidates import random_materials

from petalite.device import resolve_device
from petalite.engine.cuda import Fused
from petalite.engine.graphs import BUCKETS, Graphs
from petalite.engine.trial import Trials, known, known_path, time_on_gpu
from petalite.engine.weights import read_network
from petalite.files import write_json
from petalite.measure.environment import environment


def main() -> None:
    """Try and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="vit_large_patch16_224,vit_base_patch16_224,vit_tiny_patch16_224")
    parser.add_argument("--computes", default="fp8,bf16,int8")
    parser.add_argument("--batches", default=",".join(map(str, BUCKETS)))
    parser.add_argument("--minutes", type=float, default=5.0, help="after these, nothing more is begun")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="default: beside the engine")
    arguments = parser.parse_args()
    device, started = resolve_device(arguments.device), time.monotonic()
    trials = Trials(None, functools.partial(time_on_gpu, device=device))
    for model in arguments.models.split(","):
        network = None
        for compute in arguments.computes.split(","):
            if time.monotonic() - started > 60 * arguments.minutes:
                print(f"no time for {model} {compute}", flush=True)
                continue
            network = network or read_network(random_materials(model, device).checkpoint("fp32"))
            began = time.monotonic()
            fused = Fused(network, device, compute, trials=trials)
            graphs = Graphs(fused, (3, *fused.shape.image_size), device)
            for batch in map(int, arguments.batches.split(",")):
                # random ones: what a GPU at its limit of power can do hangs on the numbers too
                pixels = torch.randint(0, 256, (batch, 3, *fused.shape.image_size), dtype=torch.uint8, device=device)
                graphs.forward(pixels).cpu()
            print(f"{model} {compute}: {len(trials.found)} choices, {time.monotonic() - began:.1f} s", flush=True)
    name = torch.cuda.get_device_name(device)
    found = environment()
    path = arguments.out or known_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    choices = known(name) | {key: entry["best"] for key, entry in trials.found.items()}
    write_json(path, {"device": name, "made_with": found["versions"], "choices": dict(sorted(choices.items()))})
    print(path)


if __name__ == "__main__":
    main()
