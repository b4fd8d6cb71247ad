"""A tiny Vision Transformer with random weights in three formats, made once, and a measuring process that pretends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from petalite import models
from petalite.checkpoint import write_checkpoint
from petalite.measure.process import Worker
from petalite.plan import Plan
from petalite.quantization import quantize

FAKE = Path(__file__).with_name("fake_worker.py")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoint folders by format: 32 px images, 8 px patches, 2 blocks of width 64."""
    folder = tmp_path_factory.mktemp("tiny")
    config, tensors = models.create(
        "vit_tiny_patch16_224",
        pretrained=False,
        classes=[f"class {index}" for index in range(5)],
        image_size=32,
        model_args={"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4},
    )
    plan = Plan("fp32", dict.fromkeys(models.layers(models.build(config)), "fp32"), "fp32")
    base = write_checkpoint(folder / "fp32", config, tensors, plan)
    return {"fp32": base.path, **{name: quantize(base, name, folder / name).path for name in ("nf4", "int8")}}


@pytest.fixture
def fake_worker() -> Callable[..., Worker]:
    """Starts a measuring process whose classifier misbehaves as the name of its checkpoint says."""

    def start(silence_s: float = 60.0) -> Worker:
        return Worker([sys.executable, str(FAKE)], silence_s=silence_s)

    return start
