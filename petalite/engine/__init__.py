"""The engine: runs a variant (checkpoint + attention + compute) on a device.

from petalite.engine import load
classifier = load("runs/demo/checkpoints/nf4", attention="fa2")
"""

from petalite.device import resolve_compute, resolve_device
from petalite.engine.classifier import Classifier, Info, Prediction, load

__all__ = ["Classifier", "Info", "Prediction", "load", "resolve_compute", "resolve_device"]
