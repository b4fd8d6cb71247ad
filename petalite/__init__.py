"""Petalite: from a Vision Transformer and a folder of images to the smallest, fastest classifier within a budget.

    import petalite

    classifier = petalite.load("runs/demo/checkpoints/nf4")
    classifier.predict(["photo.jpg"])

Names are imported when they are first used, so that `import petalite` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petalite.ablation import ablate
    from petalite.attention import BACKENDS
    from petalite.budget import search
    from petalite.checkpoint import Checkpoint, read_checkpoint
    from petalite.data import ImageData, check_data, open_data
    from petalite.engine import Classifier, Prediction, load
    from petalite.errors import Incomplete, PetaliteError
    from petalite.evaluation import evaluate
    from petalite.formats import FORMATS
    from petalite.measure.bench import Variant, benchmark
    from petalite.plan import Plan
    from petalite.prediction import predict
    from petalite.quantization import quantize
    from petalite.recipe import Recipe
    from petalite.study import run
    from petalite.training import train
    from petalite.verification import verify

__version__ = "0.1.0"

_HOMES = {
    "BACKENDS": "attention",
    "Checkpoint": "checkpoint",
    "Classifier": "engine",
    "FORMATS": "formats",
    "ImageData": "data",
    "Incomplete": "errors",
    "PetaliteError": "errors",
    "Plan": "plan",
    "Prediction": "engine",
    "Recipe": "recipe",
    "Variant": "measure.bench",
    "ablate": "ablation",
    "benchmark": "measure.bench",
    "check_data": "data",
    "evaluate": "evaluation",
    "load": "engine",
    "open_data": "data",
    "predict": "prediction",
    "quantize": "quantization",
    "read_checkpoint": "checkpoint",
    "run": "study",
    "search": "budget",
    "train": "training",
    "verify": "verification",
}

__all__ = [
    "BACKENDS",
    "FORMATS",
    "Checkpoint",
    "Classifier",
    "ImageData",
    "Incomplete",
    "PetaliteError",
    "Plan",
    "Prediction",
    "Recipe",
    "Variant",
    "ablate",
    "benchmark",
    "check_data",
    "evaluate",
    "load",
    "open_data",
    "predict",
    "quantize",
    "read_checkpoint",
    "run",
    "search",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'petalite' has no attribute '{name}'")
    return getattr(importlib.import_module(f"petalite.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
