"""GELU of what a matrix product gives, written as the next product takes it: one pass, also with a scale for each row.

    codes, scale = gelu(x, dtype=torch.float8_e4m3fn)                  # x Φ(x), a scale for each row
    values, _ = gelu(x, dtype=torch.bfloat16, approximate="tanh")

With the tail T(a) = Φ(−a) of the normal distribution, GELU(x) = max(x, 0) − |x| T(|x|), and log2 T is so smooth that
a polynomial of low degree gives it: one exponential and a few multiply-adds a value, also where x is far below zero and
1 + erf would cancel. The usual erf takes two dozen instructions, more than there is time for while a value is moved.
The tanh form has the tail σ(−2u), u = √(2/π) (a + 0.044715 a³), and needs other coefficients only.

The coefficients make the largest error in GELU on [0, 6] smallest; beyond, the polynomials fall steeply, as log2 T does.
Source of GELU: Hendrycks and Gimpel, 2016 (arXiv:1606.08415).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from petalite.engine.kernels import Launch, Quantized
from petalite.engine.kernels.quantize import apply


def gelu(
    x: Tensor,
    *,
    dtype: torch.dtype,
    scale: Tensor | None = None,
    approximate: str = "none",
    launch: Launch | None = None,
) -> Quantized:
    """GELU of `x` (rows, C) as `dtype`, and its scale; `dtype` and `scale` as in `quantize`.

    approximate: "none", or "tanh" for models trained with that form. The error, before rounding to `dtype`, is below 1e-6
    (2e-7 where `dtype` is float32, and for "tanh"). Raises ValueError for another word, and as `quantize` does.
    """
    return apply(activation(approximate, dtype), x, dtype, scale, launch)


def activation(approximate: str, dtype: torch.dtype) -> Any:
    """The Triton function for values that are then written as `dtype`; it may be called inside other kernels.

    Raises ValueError unless `approximate` is "none" or "tanh".
    """
    if approximate == "tanh":
        return gelu_tanh
    if approximate != "none":
        raise ValueError(f"GELU is known as 'none' (exact) and 'tanh', not as '{approximate}'")
    return gelu_exact if dtype == torch.float32 else gelu_half


@triton.jit
def gelu_half(x: tl.tensor) -> tl.tensor:
    """float32 -> x Φ(x) within 1e-6, and within 1.5 % of itself down to x = -5: for results of at most 11 bits."""
    a = tl.minimum(tl.abs(x), 64.0)  # infinity times a tail of zero would not be a number
    power = -0.0004214374
    power = power * a + 0.0067464244
    power = power * a - 0.051046394
    power = power * a - 0.46076882
    power = power * a - 1.1504703
    power = power * a - 1.0000771
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * tl.exp2(power)


@triton.jit
def gelu_exact(x: tl.tensor) -> tl.tensor:
    """float32 -> x Φ(x) within 2e-7."""
    a = tl.minimum(tl.abs(x), 64.0)
    power = -1.1673019e-06
    power = power * a + 1.8499251e-05
    power = power * a - 8.103871e-05
    power = power * a - 0.00041167033
    power = power * a + 0.0074642277
    power = power * a - 0.052823104
    power = power * a - 0.4590672
    power = power * a - 1.1511332
    power = power * a - 0.9999982
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * tl.exp2(power)


@triton.jit
def gelu_tanh(x: tl.tensor) -> tl.tensor:
    """float32 -> x (1 + tanh u) / 2 within 2e-7."""
    a = tl.minimum(tl.abs(x), 64.0)
    power = -3.1794065e-05
    power = power * a + 0.00050180865
    power = power * a - 0.002724892
    power = power * a + 0.004475108
    power = power * a + 0.0028008735
    power = power * a - 0.048526227
    power = power * a - 0.46016252
    power = power * a - 1.1509722
    power = power * a - 1.0000049
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * tl.exp2(power)
