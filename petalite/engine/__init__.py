"""The engine: runs a variant (checkpoint + attention + compute) on a device.

from petalite.engine import load
classifier = load("runs/demo/checkpoints/nf4", attention="fa2")
"""

from petalite.device import resolve_device
from petalite.engine.classifier import Classifier, Info, Prediction
from petalite.engine.cuda import OWN_ATTENTION
from petalite.engine.loading import ENGINES, engine_missing, engine_unavailable, fused_unavailable, load

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
