"""Timing in fair turns, in one process: every candidate a slice in each round, another one first each time.

A slice is single passes with nothing else in flight (latency) and passes queued back to back (rate). Memory is what
PyTorch's allocator reserves for a candidate, graphs of the batches before included; other candidates' is not in it.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_candidates import Candidate, Loaded, Materials
from torch import Tensor

from petalite.errors import PetaliteError
from petalite.measure.ceilings import quickest_product, wait_for
from petalite.measure.latency import count_forwards, time_forwards, warm_up
from petalite.measure.statistics import percentiles

ROUNDS = 5
#: Passes longer than this are not queued: their rate is that of single ones.
_LONG_S = 0.1


class DeviceLost(Exception):
    """A candidate has left the device unusable for this process."""


@dataclass
class Run:
    """What became of a candidate at one batch size."""

    candidate: Candidate
    loaded: Loaded | None = None
    forward: Callable[[], Tensor] | None = None
    reason: str | None = None
    status: str = "ok"
    load_s: float | None = None
    prepare_s: float | None = None
    held_bytes: int = 0
    peak_bytes: int | None = None
    logits: Tensor | None = None
    samples_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def again(self) -> Run:
        """The same candidate as it was loaded, for another batch size."""
        known = {key: getattr(self, key) for key in ("loaded", "reason", "status", "load_s", "held_bytes")}
        return Run(self.candidate, **known)

    def fail(self, error: BaseException, device: torch.device) -> None:
        """Give up with the error's first line. Raises DeviceLost when the device does not answer any more."""
        lines = str(error).strip().splitlines() or ["no message"]
        skipped = isinstance(error, PetaliteError)  # it says why it cannot run here; anything else is a failure
        self.status = "skipped" if skipped else "failed"
        self.reason = f"{'' if skipped else type(error).__name__ + ': '}{lines[0][:240]}"
        self.forward = None
        try:
            wait_for(device)()
        except RuntimeError as lost:
            raise DeviceLost(f"{self.candidate.name}: {self.reason}") from lost


def load_candidate(candidate: Candidate, materials: Materials) -> Run:
    """Load a candidate; a failure is a reason."""
    run = Run(candidate)
    before, started = _reserved(materials.device), time.perf_counter()
    try:
        run.loaded = candidate.load(materials)
        wait_for(materials.device)()
    except Exception as error:
        run.fail(error, materials.device)
    run.load_s = time.perf_counter() - started
    run.held_bytes = _reserved(materials.device) - before
    return run


def prepare(run: Run, materials: Materials, images: Tensor, batch: int, inputs: dict[torch.dtype, Tensor]) -> None:
    """First passes of a batch size: compiles, records, takes memory; keeps the logits of `images`, batch by batch.

    images: uint8 on the device, at least `batch` of them. inputs: the same as the candidates take them, filled here.
    """
    if run.loaded is None:
        return
    forward, takes, device = run.loaded.forward, run.loaded.takes, materials.device
    if takes not in inputs:
        inputs[takes] = images if takes == torch.uint8 else materials.preprocess.normalize(images).to(takes)
    one = inputs[takes][:batch].clone()

    @torch.inference_mode()
    def pass_() -> Tensor:
        return forward(one)

    before, started = _reserved(device), time.perf_counter()
    try:
        warm_up(pass_, wait_for(device), passes=3, seconds=0.0)
        run.prepare_s = time.perf_counter() - started
        run.peak_bytes = run.held_bytes + (_reserved(device, trim=False) - before) if device.type == "cuda" else None
        # ordinary tensors like `one`: torch.compile would compile again for tensors made in inference mode
        parts = [part.clone() for part in inputs[takes][: len(images) // batch * batch].split(batch)]
        with torch.inference_mode():
            run.logits = torch.cat([forward(part).float().cpu() for part in parts])
        run.forward = pass_
        run.held_bytes += _reserved(device) - before
    except Exception as error:
        run.fail(error, device)


def measure(runs: Sequence[Run], device: torch.device, seconds: float, rounds: int) -> None:
    """`rounds` rounds over the runs that are prepared, about `seconds` each in all."""
    wait, share = wait_for(device), seconds / rounds / 2
    for turn in range(rounds):
        ready = [run for run in runs if run.forward is not None]
        at = turn % len(ready) if ready else 0
        for run in ready[at:] + ready[:at]:
            assert run.forward is not None
            try:
                taken = time_forwards(run.forward, wait, samples=2, seconds=share)
                run.samples_ms += taken
                if min(taken) < 1e3 * _LONG_S:
                    run.rates.append(count_forwards(run.forward, wait, seconds=share))
            except Exception as error:
                run.fail(error, device)


def figures(run: Run, batch: int) -> dict[str, Any]:
    """Speed and memory of a run, for a table; empty where nothing was measured."""
    if not run.samples_ms or run.reason is not None:
        return {}
    latency = percentiles(run.samples_ms)
    rates = sorted(run.rates) or [1e3 / latency["p50"]]
    return {
        "images_per_s": batch * rates[len(rates) // 2],
        "p50_ms": latency["p50"],
        "p95_ms": latency["p95"],
        "samples": len(run.samples_ms),
        "peak_bytes": run.peak_bytes,
        "load_s": run.load_s,
        "prepare_s": run.prepare_s,
    }


def product_rates(materials: Materials, rows: int, seconds: float = 0.3) -> dict[str, float]:
    """Images/s that the matrix products of all blocks alone would allow, by precision; what cannot run is left out.

    Each of a block's four products is timed at `rows` rows (images times tokens), in the plainest call there is.
    """
    shape: Any = materials.parent.skeleton()
    tokens, block = shape.patch_embed.num_patches + shape.num_prefix_tokens, shape.blocks[0]
    layers = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    device = materials.device
    found = {}
    for name in ("bf16", "fp8", "int8") if device.type == "cuda" else ("bf16",):
        try:
            took = [
                quickest_product(name, rows, layer.in_features, layer.out_features, device, seconds)[1]
                for layer in layers
            ]
            found[name] = rows / tokens / (len(shape.blocks) * sum(took))
        except RuntimeError as error:
            print(f"{name} products alone are left out: {error}", file=sys.stderr)
    return found


def _reserved(device: torch.device, trim: bool = True) -> int:
    """Bytes that the allocator holds; trim: less what it could give back."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    if trim:
        gc.collect()
        torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)
