"""Checkpoints with random weights, for speed studies by a model's size: nothing is downloaded, nothing is trained.

checkpoints = random_checkpoints("vit_large_patch16_224", ["fp32", "nf4"], folder)
benchmark([Variant(name, path) for name, path in checkpoints.items()])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from petalite import models
from petalite.checkpoint import write_checkpoint
from petalite.plan import Plan, is_head
from petalite.quantization import quantize


def random_checkpoints(
    model: str, formats: Sequence[str], folder: str | Path, *, image_size: int | None = None, seed: int = 0
) -> dict[str, Path]:
    """Write `model` with random weights in each of `formats` below `folder`; the folders by format.

    Raises PetaliteError for an unknown or unsupported model and for an unknown format.
    """
    folder = Path(folder)
    config, tensors = models.create(model, pretrained=False, image_size=image_size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name in tensors:
        if is_head(name.rpartition(".")[0]):  # timm starts it at zero, which some kernels multiply faster
            tensors[name] = 0.02 * torch.randn(tensors[name].shape, generator=generator)
    plan = Plan("fp32", dict.fromkeys(models.layers(models.build(config)), "fp32"), "fp32")
    base = write_checkpoint(folder / "fp32", config, tensors, plan, {"weights from": "a random generator"})
    paths = {"fp32": base.path}
    for name in formats:
        if name not in paths:
            paths[name] = quantize(base, name, folder / name).path
    return {name: paths[name] for name in formats}
