"""Makes the choices of kernels that come with Petalite for this GPU: `petalite/engine/known/NAME.json`.

    python benchmarks/gpu_trials.py --models vit_large_patch16_224,vit_base_patch16_224 --computes bf16,fp8,int8

Runs the engine of each model (random weights) in each precision on every batch bucket, with trials of its own (what
stands in the cache or came with Petalite is not asked), and writes the names that they found beside those that came with
Petalite for other shapes. For single images (`--settle`) each choice is then tried once more in the whole pass, since a
kernel's cost hangs on its neighbours. Let nothing else run on the GPU meanwhile.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_candidates import random_materials
from torch import Tensor

from petalite.device import resolve_device
from petalite.engine.cuda import Fused
from petalite.engine.graphs import BUCKETS, Graphs
from petalite.engine.kernels.launching import compile_together
from petalite.engine.trial import Trials, known, known_path, time_on_gpu
from petalite.engine.weights import read_network
from petalite.files import write_json
from petalite.measure.ceilings import wait_for
from petalite.measure.environment import environment
from petalite.measure.latency import count_forwards

_BETTER = 0.995  # of the time of a pass, in all of its turns but one


def settle(fused: Fused, pixels: Tensor, trials: Trials) -> None:
    """Try every choice of a pass over `pixels` once more, in the whole pass, and keep what makes that quicker.

    A trial times a kernel after itself. In a pass, what it costs hangs on its neighbours: one that starts before the
    kernel ahead has ended gains there what it loses alone.
    """

    def recorded() -> Graphs:
        graphs = Graphs(fused, pixels.shape[1:], pixels.device, (len(pixels),))
        graphs.forward(pixels)
        return graphs

    def ratio(other: Graphs, base: Graphs) -> float:
        """Time of a pass of `other` to one of `base`: the third smallest of four, taken in turns."""
        found = []
        for _ in range(4):
            rates = [count_forwards(partial(one.forward, pixels), wait, seconds=0.03) for one in (base, other)]
            found.append(rates[0] / rates[1])
        return sorted(found)[2]

    wait = wait_for(pixels.device)
    met = trials_met(fused, pixels)
    base = recorded()
    for key in filter(trials.found.__contains__, met):  # what has one way only was not tried
        for name in trials.found[key]["us"]:
            kept = fused.choices.report()[key]
            if name == kept:
                continue
            fused.choices.hold(key, name)
            other = recorded()
            if (share := ratio(other, base)) < _BETTER:
                print(f"{key}: {name}, not {kept}: {share:.3f} of a pass of {len(pixels)}", flush=True)
                base = other
            else:
                fused.choices.hold(key, kept)
        trials.found[key]["best"] = fused.choices.report()[key]


def trials_met(fused: Fused, pixels: Tensor) -> list[str]:
    """The keys that a pass over `pixels` chooses by."""
    asked: list[str] = []
    choose = fused.choices.choose

    def listen(key: str, *rest: Any) -> str:
        asked.append(key)
        return choose(key, *rest)

    fused.choices.choose = listen  # type: ignore[method-assign]
    try:
        fused(pixels)
    finally:
        del fused.choices.choose  # type: ignore[method-assign]
    return list(dict.fromkeys(asked))


def write(path: Path, device: torch.device, trials: Trials) -> None:
    """What was found so far, beside what came with Petalite for other shapes."""
    name = torch.cuda.get_device_name(device)
    choices = known(name) | {key: entry["best"] for key, entry in trials.found.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    made_with = environment()["versions"]
    write_json(path, {"device": name, "made_with": made_with, "choices": dict(sorted(choices.items()))})


def main() -> None:
    """Try and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="vit_large_patch16_224,vit_base_patch16_224,vit_tiny_patch16_224")
    parser.add_argument("--computes", default="fp8,bf16,int8")
    parser.add_argument("--batches", default=",".join(map(str, BUCKETS)))
    parser.add_argument("--settle", type=int, default=1, help="largest batch whose choices are tried in the whole pass")
    parser.add_argument("--minutes", type=float, default=5.0, help="after these, nothing more is begun")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="default: beside the engine")
    arguments = parser.parse_args()
    device, started = resolve_device(arguments.device), time.monotonic()
    trials = Trials(None, partial(time_on_gpu, device=device), prepare=partial(compile_together, device=device))
    path = arguments.out or known_path(torch.cuda.get_device_name(device))
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
                if batch <= arguments.settle:
                    settle(fused, pixels, trials)
            print(f"{model} {compute}: {len(trials.found)} choices, {time.monotonic() - began:.1f} s", flush=True)
            write(path, device, trials)  # at once: these minutes are dear
    print(path)


if __name__ == "__main__":
    main()
