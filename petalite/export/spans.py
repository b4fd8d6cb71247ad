"""The ranges of the products' inputs, which 8-bit exports need: the checkpoint's own, else measured on training images.

checkpoint = with_spans(checkpoint, data)      # its plan's `activations` name every layer inside the blocks
"""

from __future__ import annotations

from dataclasses import replace

from petalite.calibration import calibrate, calibration_pixels
from petalite.checkpoint import Checkpoint
from petalite.console import say
from petalite.data import ImageData, Preprocess
from petalite.plan import Plan, in_block

_FORMAT = "int8-channel"
_IMAGES = 256


def expanded(checkpoint: Checkpoint) -> Checkpoint:
    """The same model in memory with every weight in single precision, its tokens merged as before."""
    layers = dict.fromkeys(checkpoint.outline.layers, "fp32")
    plan = Plan("fp32", layers, "fp32", checkpoint.plan.merge)
    return Checkpoint(checkpoint.path, checkpoint.config, plan, checkpoint.plain_tensors())


def with_spans(checkpoint: Checkpoint, data: ImageData, seed: int = 0) -> Checkpoint:
    """`checkpoint`, its plan with a range for every layer inside the blocks. Nothing is written.

    Raises PetaliteError where there are none and fewer than 16 training images to find them on.
    """
    inside = [name for name in checkpoint.outline.layers if in_block(name)]
    if all(name in checkpoint.plan.activations for name in inside):
        return checkpoint
    pixels = calibration_pixels(data, Preprocess.from_config(checkpoint.config), _IMAGES, seed)
    wanted = Plan(_FORMAT, dict.fromkeys(inside, _FORMAT), "fp32", checkpoint.plan.merge)
    found = calibrate(expanded(checkpoint), wanted, pixels, method="nearest", seed=seed)
    say(f"ranges of inputs: {len(pixels)} training images, {found.seconds:.0f} s")
    return replace(checkpoint, plan=replace(checkpoint.plan, activations=found.activations))
