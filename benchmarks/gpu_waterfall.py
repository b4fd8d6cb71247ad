"""Petalite's steps one after the other, each with its speed and with what it costs: `gpu_peers.py --waterfall`.

Steps: FP32 module, BF16 module, fused BF16, in CUDA graphs, FP8 with a scale for each token, with scales from bounds of
the weights, from a checkpoint of 4 bits, with tokens merged. Speed is that of random weights at a model's shape; where a
checkpoint and labelled photos are given, also its own, and its accuracy on the test photos through the very same steps.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_candidates import Candidate, Loaded, Materials, random_images, random_materials
from gpu_rounds import Run, figures, load_candidate, measure, prepare
from torch import Tensor

from petalite.calibration import calibrate, calibration_pixels
from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.data import Preprocess, load_batches, open_data
from petalite.engine import load
from petalite.engine.cuda import Fused
from petalite.engine.graphs import Graphs
from petalite.engine.weights import read_network
from petalite.errors import PetaliteError
from petalite.formats import get_format
from petalite.measure.accuracy import score
from petalite.merging import parse_merge
from petalite.plan import Plan
from petalite.quantization import packed_checkpoint

FOUR_BITS = "int4"
_CALIBRATION_IMAGES = 256
_AGREEMENT_IMAGES = 64
_ACCURACY_BATCH = 64

COLUMNS = (
    *("run", "weights", "batch_size", "step", "about", "status", "reason", "images_per_s", "p50_ms", "p95_ms", "samples"),
    *("times_first", "times_before", "stored_bytes", "peak_bytes", "ran", "scales", "agreement", "logit_error"),
    *("top1", "top1_ci95_low", "top1_ci95_high", "drop_points", "drop_ci95_low", "drop_ci95_high", "photos"),
)  # fmt: skip


def steps(
    materials: Materials, four_bits: Checkpoint, merge: tuple[int, ...], only: str
) -> list[tuple[Candidate, Checkpoint]]:
    """The candidates in order, those named by the patterns in `only`, and the checkpoint that each of them runs."""
    plain = materials.checkpoint("fp32")
    merged = replace(four_bits, plan=replace(four_bits.plan, merge=merge))
    table = (
        ("fp32-module", "eager FP32 module", plain, "fp32", "module"),
        ("bf16-module", "eager BF16 module", plain, "bf16", "module"),
        ("bf16-fused", "fused BF16, no graphs", plain, "bf16", "ungraphed"),
        ("bf16-graphs", "fused BF16 in CUDA graphs", plain, "bf16", "fused"),
        ("fp8-token", "FP8, a scale for each token", plain, "fp8", "token"),
        ("fp8", "FP8, scales from bounds of the weights", plain, "fp8", "fused"),
        ("fp8-4bit", f"FP8 from a checkpoint in {FOUR_BITS}", four_bits, "fp8", "fused"),
        ("fp8-4bit-merging", f"and {sum(merge)} tokens merged", merged, "fp8", "fused"),
    )
    return [
        (Candidate(name, about, partial(_loaded, checkpoint=checkpoint, compute=compute, engine=engine)), checkpoint)
        for name, about, checkpoint, compute, engine in table
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in only.split(","))
    ]


def random_rows(
    name: str, device: torch.device, batches: Sequence[int], merge: str, only: str, seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """Speed of every step for random weights of timm's model `name`."""
    materials = random_materials(name, device)
    four_bits = materials.checkpoint(FOUR_BITS, static=True)
    return _rows(materials, four_bits, batches, merge, only, seconds, rounds, f"{name} (random weights)")


def real_rows(
    path: Path,
    data: str,
    device: torch.device,
    batches: Sequence[int],
    merge: str,
    only: str,
    seconds: float,
    rounds: int,
) -> list[dict[str, Any]]:
    """Speed and accuracy of every step for a checkpoint stored in FP32, on the test photos of `data`."""
    parent, images = read_checkpoint(path), open_data(data)
    preprocess = Preprocess.from_config(parent.config)
    pixels = calibration_pixels(images, preprocess, _CALIBRATION_IMAGES)
    materials = Materials(parent, device, pixels)
    plan = Plan.uniform(FOUR_BITS, rest=get_format(FOUR_BITS).rest, layers=parent.outline.layers)
    found = calibrate(parent, plan, pixels, method="gptq", device=device)
    four_bits = packed_checkpoint(parent, replace(plan, activations=found.activations), calibrated=found.packed)
    samples = images.splits["test"]
    read = list(load_batches([sample.path for sample in samples], preprocess, _ACCURACY_BATCH))
    if errors := [message for batch in read for _, message in batch.errors]:
        raise SystemExit(errors[0])
    photos = torch.cat([batch.pixels for batch in read])
    targets = torch.tensor([sample.target for sample in samples])
    return _rows(materials, four_bits, batches, merge, only, seconds, rounds, str(path), photos, targets)


def _rows(
    materials: Materials,
    four_bits: Checkpoint,
    batches: Sequence[int],
    merge: str,
    only: str,
    seconds: float,
    rounds: int,
    weights: str,
    photos: Tensor | None = None,
    targets: Tensor | None = None,
) -> list[dict[str, Any]]:
    listed = steps(materials, four_bits, _merge(materials, merge), only)
    ready = [(load_candidate(candidate, materials), checkpoint) for candidate, checkpoint in listed]
    answers = [_answers(run, materials, photos) for run, _ in ready]
    rows = []
    images = random_images(max(_AGREEMENT_IMAGES, *batches), materials.size).to(materials.device)
    exact = materials.exact("fp32", images.cpu())
    for batch in batches:
        runs, inputs = [run.again() for run, _ in ready], {}
        for run, (template, _) in zip(runs, ready, strict=True):
            prepare(run, materials, images, batch, inputs)
            template.held_bytes = run.held_bytes
        measure(runs, materials.device, seconds, rounds)
        before = first = None
        for run, own, (_, checkpoint) in zip(runs, answers, ready, strict=True):
            measured = figures(run, batch)
            p50 = measured.get("p50_ms")
            first = first or p50
            row: dict[str, Any] = {
                "weights": weights,
                "batch_size": batch,
                "step": run.candidate.name,
                "about": run.candidate.about,
                "status": run.status,
                "reason": run.reason,
                **measured,
                "times_first": first / p50 if first and p50 else None,
                "times_before": before / p50 if before and p50 else None,
                "stored_bytes": sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
                "ran": run.loaded.ran if run.loaded else None,
                "scales": run.loaded.scales if run.loaded else None,
                **agreement(run.logits, exact),
            }
            if own is not None and targets is not None:
                row |= _accuracy(own, targets, answers[0])
            before = p50 or before
            rows.append({key: row.get(key) for key in COLUMNS})
    return rows


def agreement(logits: Tensor | None, exact: Tensor, prefix: str = "") -> dict[str, float]:
    """The share of images with the same best class, and the relative error of the logits, on the images that ran."""
    if logits is None:
        return {}
    exact = exact[: len(logits)]
    same = (logits.argmax(1) == exact.argmax(1)).double().mean()
    return {
        f"{prefix}agreement": float(same),
        f"{prefix}logit_error": float((logits - exact).norm() / exact.norm()),
    }


def _loaded(materials: Materials, checkpoint: Checkpoint, compute: str, engine: str) -> Loaded:
    if engine == "token":
        if materials.device.type != "cuda":
            raise PetaliteError("the fused engine needs a CUDA device")
        fused = Fused(read_network(checkpoint), materials.device, compute, scales="token")
        graphs = Graphs(fused, (3, *materials.size), materials.device)
        return Loaded(graphs.forward, torch.uint8, f"attention {fused.attention}", fused.scales)
    asked = "module" if engine == "module" else "fused"
    classifier = load(checkpoint, str(materials.device), compute=compute, engine=asked)
    forward = classifier.runner.fused if engine == "ungraphed" else classifier.forward
    return Loaded(forward, torch.uint8, f"attention {classifier.info.attention}", classifier.info.scales)


def _merge(materials: Materials, text: str) -> tuple[int, ...]:
    """What `text` says; half of the patches, spread over the blocks, where it says nothing."""
    shape: Any = materials.parent.skeleton()
    depth = len(shape.blocks)
    return parse_merge(text or str(shape.patch_embed.num_patches // (2 * depth)), depth)


@torch.inference_mode()
def _answers(run: Run, materials: Materials, photos: Tensor | None) -> Tensor | None:
    """Logits of all photos, on the CPU."""
    if photos is None or run.loaded is None:
        return None
    try:
        return torch.cat(
            [run.loaded.forward(some.to(materials.device)).float().cpu() for some in photos.split(_ACCURACY_BATCH)]
        )
    except Exception as error:
        run.loaded = None
        run.fail(error, materials.device)
        return None


def _accuracy(logits: Tensor, targets: Tensor, first: Tensor | None) -> dict[str, Any]:
    scored = score(logits, targets, first)
    low, high = scored["drop_ci95"] or (math.nan, math.nan)
    return {
        "top1": scored["top1"],
        "top1_ci95_low": scored["top1_ci95"][0],
        "top1_ci95_high": scored["top1_ci95"][1],
        "drop_points": scored["drop_points"],
        "drop_ci95_low": low,
        "drop_ci95_high": high,
        "photos": scored["images"],
    }
