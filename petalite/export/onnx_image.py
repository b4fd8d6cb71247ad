"""Resizing and cropping inside an ONNX graph: an image of any size as decoders give it -> the model's pixels.

    pixels = cut_image(ops, "image", preprocess)      # uint8 (N, any, any, 3) -> uint8 (N, 3, H, W)

The same sizes as `Preprocess.cut`, rounded as timm rounds them, PIL's antialiased filters, which ONNX's Resize has with
`antialias` (cubic with a = -0.5), and the crop's corner rounded half to even as Python does. Pixels differ from PIL's by
a step or two where a runtime rounds once between rows and columns and the other does not.
"""

from __future__ import annotations

import math

import numpy as np

from petalite.data import Preprocess
from petalite.errors import PetaliteError
from petalite.export.onnx_ops import Ops

_FILTERS = {"bicubic": "cubic", "bilinear": "linear"}


def cut_image(ops: Ops, image: str, preprocess: Preprocess) -> str:
    """Pixels uint8 (N, 3, H, W) of `image`, uint8 (N, h, w, 3).

    Raises PetaliteError for a filter or a way of cropping that the graph does not express.
    """
    if problem := _problem(preprocess):
        raise PetaliteError(f"{problem} cannot be written into an ONNX graph; use --preprocess pixels")
    x = ops.transpose(image, 0, 3, 1, 2)
    target = (
        math.floor(preprocess.size[0] / preprocess.crop_pct),
        math.floor(preprocess.size[1] / preprocess.crop_pct),
    )
    sizes = ops.integers(*target) if preprocess.crop_mode == "squash" else _kept_aspect(ops, x, target[0])
    sizes = ops("Concat", ops("Shape", x, start=0, end=2), sizes, axis=0)
    filtered = {"mode": _FILTERS[preprocess.interpolation], "cubic_coeff_a": -0.5, "antialias": 1, "exclude_outside": 1}
    x = ops("Resize", x, "", "", sizes, **filtered)
    for axis, wanted in zip((2, 3), preprocess.size, strict=True):
        x = _middle(ops, x, axis, wanted)
    return x


def _problem(preprocess: Preprocess) -> str | None:
    if preprocess.interpolation not in _FILTERS:
        return f"resizing by '{preprocess.interpolation}'"
    if preprocess.crop_mode == "border" or preprocess.crop_pct > 1:
        return "filling up borders"
    if preprocess.crop_mode == "center" and preprocess.size[0] != preprocess.size[1]:
        return "a crop that is not square"
    return None


def _kept_aspect(ops: Ops, x: str, target: int) -> str:
    """Height and width, int64 (2,), whose shorter one is `target`; the longer one rounded down."""
    sides = ops("Shape", x, start=2, end=4)
    shorter = ops("ReduceMin", sides, keepdims=1)
    return ops("Div", ops("Mul", sides, ops.integers(target)), shorter)


def _middle(ops: Ops, x: str, axis: int, wanted: int) -> str:
    """The middle `wanted` along an axis, from half of what is left over, which is rounded half to even."""
    left = ops("Sub", ops.size(x, axis), ops.integers(wanted))
    half = ops("Div", left, ops.integers(2))
    start = ops("Div", ops("Add", left, ops("Mod", half, ops.integers(2))), ops.integers(2))
    stop = ops("Add", start, ops.integers(wanted))
    return ops("Slice", x, start, stop, ops.constant([axis], np.int64))
