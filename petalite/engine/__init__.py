"""The engine: runs a variant (checkpoint + attention + compute) on a device.

from petalite.engine import load
classifier = load("runs/demo/checkpoints/nf4", attention="fa2")

What needs PyTorch is imported when it is first used: a checkpoint that is known on a CPU runs without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from petalite.engine.classifier import Classifier, Info, Prediction
from petalite.engine.start import load

if TYPE_CHECKING:
    from petalite.device import resolve_device
    from petalite.engine.attending import OWN_ATTENTION
    from petalite.engine.loading import ENGINES, engine_missing, engine_unavailable, fused_unavailable

_HOMES = {
    "ENGINES": "petalite.engine.loading",
    "OWN_ATTENTION": "petalite.engine.attending",
    "engine_missing": "petalite.engine.loading",
    "engine_unavailable": "petalite.engine.loading",
    "fused_unavailable": "petalite.engine.loading",
    "resolve_device": "petalite.device",
}

__all__ = [
    "ENGINES",
    "OWN_ATTENTION",
    "Classifier",
    "Info",
    "Prediction",
    "engine_missing",
    "engine_unavailable",
    "fused_unavailable",
    "load",
    "resolve_device",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'petalite.engine' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
