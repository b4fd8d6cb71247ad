"""What the inputs of products cannot exceed, proven from the weights: scales for FP8 without calibration or clipping.

    bounds(network.blocks[0])       # Bounds(qkv=9.1, heads=20.3, proj=14.2, fc1=11.0, fc2=38.5)

A vector that was normalized has mean 0 and length √C, whatever the image. So no output of a LayerNorm exceeds √C times
its weight, plus its bias; no output of the Linear behind it exceeds √C times the length of its row (Cauchy-Schwarz);
attention returns means of values, and GELU nothing larger than it is given. Such a bound lies about √C above typical
values. For integers that would waste five of eight bits. Floating point does not mind: e4m3 keeps its full precision
over 15 octaves, so a step at which the bound is just the largest code neither clips nor rounds worse than a step for
each token does, and one step for a whole tensor is what GPUs multiply fastest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from petalite.engine.weights import Block, Linear, Norm

#: Rounding to bfloat16 on the way may add this much.
_ROUNDING = 1.02


@dataclass(frozen=True)
class Bounds:
    """The largest absolute value that the input of each product of a block can have, and of attention (`heads`)."""

    qkv: float
    heads: float
    proj: float
    fc1: float
    fc2: float


def bounds(block: Block) -> Bounds:
    """The bounds of one block, for any image."""
    width = len(block.norm1.weight)
    value = block.qkv.rows(len(block.qkv.weight) * 2 // 3, len(block.qkv.weight))
    return Bounds(
        qkv=_after_norm(block.norm1, width),
        heads=_after_linear(block.norm1, block.qkv, width),
        proj=_after_linear(block.norm1, value, width),
        fc1=_after_norm(block.norm2, width),
        fc2=_after_linear(block.norm2, block.fc1, width),
    )


def _after_norm(norm: Norm, width: int) -> float:
    weight, bias = norm.weight.double().abs(), norm.bias.double().abs()
    return _ROUNDING * float((weight * (width - 1) ** 0.5 + bias).max())


def _after_linear(norm: Norm, linear: Linear, width: int) -> float:
    """The largest output of `linear` behind `norm`: its rows, scaled by the norm, against a vector of mean 0."""
    weight = linear.weight.double()
    rows = weight * norm.weight.double()
    rows = rows - rows.mean(dim=1, keepdim=True)  # what is the same for all channels sees their mean alone
    constant: Tensor = weight @ norm.bias.double()
    if linear.bias is not None:
        constant = constant + linear.bias.double()
    largest = torch.linalg.vector_norm(rows, dim=1) * width**0.5 + constant.abs()
    return _ROUNDING * float(largest.max())
