"""The 8-bit codes that an exported product multiplies: the checkpoint's own where it has them, else rounded to nearest.

    codes = Codes(checkpoint)
    rows, steps = codes.rows("blocks.0.attn.qkv", weight)     # int8 (out, in), float32 (out, 1); weight ≈ rows · steps

A layer that is stored in 8 bits with a scale a row was calibrated in exactly these codes, and rounding its expanded
weight again would lose some of that. What was folded into rows since (a layer scale, the attention's 1/√d) only changes
what a step is worth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from petalite.checkpoint import Checkpoint
from petalite.export.targets import Array
from petalite.formats import get_format
from petalite.formats.grid import UniformGrid

_LARGEST = 127
_MIDDLE = 128


class Codes:
    """The codes of a checkpoint's layers."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        #: Layers whose own codes were taken.
        self.own: set[str] = set()

    def rows(self, name: str, weight: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes (out, in) from -127 to 127, and what a step of each row is worth, above 0, (out, 1)."""
        stored = self._stored(name)
        if stored is not None and stored.shape == weight.shape and (found := _worth(weight, stored)):
            self.own.add(name)
            return found
        steps = np.abs(weight).max(axis=1, keepdims=True) / _LARGEST
        steps = np.where(steps > 0, steps, 1.0).astype(np.float32)
        return np.clip(np.rint(weight / steps), -_LARGEST, _LARGEST).astype(np.int8), steps

    def _stored(self, name: str) -> Array | None:
        """The codes (out, in) in which a layer stands on disk; None where those are not 8 bits with a scale a row."""
        format = self.checkpoint.plan.layers.get(name)
        grid = get_format(format).grid if format else None
        if not isinstance(grid, UniformGrid) or grid.bits != 8 or grid.group is not None or not grid.symmetric:
            return None
        return self.checkpoint.layer(name)["weight"].numpy().astype(np.int16) - _MIDDLE


def _worth(weight: Array, codes: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """`codes`, and the steps that make them `weight`, from each row's largest code; None where they do not."""
    at = np.abs(codes).argmax(axis=1)[:, None]
    largest = np.take_along_axis(codes, at, axis=1)
    steps = np.take_along_axis(weight, at, axis=1) / np.where(largest == 0, 1, largest)
    signs = np.where(steps < 0, -1, 1)
    codes = np.where(steps == 0, 0, codes * signs)
    worth: NDArray[np.float32] = np.where(steps == 0, 1.0, np.abs(steps)).astype(np.float32)
    if codes.max() > _LARGEST:
        return None  # a row was turned over whose code -128 has no opposite
    if not np.allclose(codes * worth, weight, rtol=1e-4, atol=float(worth.max()) * 1e-3):
        return None
    return codes.astype(np.int8), worth
