"""Small checkpoints and image folders that tests make for themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from petalite import models
from petalite.checkpoint import Checkpoint, write_checkpoint
from petalite.plan import Plan

ARGUMENTS: dict[str, Any] = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
CLASSES = ("daisy", "rose", "tulip")


def tiny_checkpoint(path: Path, seed: int = 0, classes: tuple[str, ...] = CLASSES, **arguments: Any) -> Checkpoint:
    """A plain fp32 checkpoint of a two-block ViT for 32-pixel images, with random weights, also in its head."""
    config, tensors = models.create(
        "vit_tiny_patch16_224",
        pretrained=False,
        classes=classes,
        image_size=32,
        model_args={**ARGUMENTS, **arguments},
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        tensors[name] = tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
    plan = Plan("fp32", dict.fromkeys(models.layers(models.build(config)), "fp32"), "fp32")
    return write_checkpoint(path, config, tensors, plan)


def tiny_pixels(count: int = 4, seed: int = 0) -> torch.Tensor:
    """uint8 pixels (count, 3, 32, 32)."""
    return torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def tiny_images(
    root: Path,
    train: int = 8,
    valid: int = 4,
    test: int = 4,
    classes: tuple[str, ...] = CLASSES,
) -> Path:
    """An ImageFolder whose classes differ in colour, so that a model can learn them; images a class and split."""
    random = np.random.default_rng(0)
    for split, count in {"train": train, "valid": valid, "test": test}.items():
        for index, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = random.integers(0, 90, (32, 32, 3), dtype=np.uint8)
                image[:, :, index % 3] += np.uint8(120)
                Image.fromarray(image).save(folder / f"{number}.png")
    return root
