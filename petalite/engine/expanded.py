"""One layer as it is multiplied: its weight as 8-bit codes or plain values, and what a step of the codes is worth.

codes, scale = encode(weight, torch.int8)      # a scale for each row
step_of((-3.1, 4.0), torch.int8)               # 0.0315: what a step is worth for inputs of this range
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CODES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
#: The end of a calibrated range as a part of the largest code. The range leaves out outliers that would cost integers
#: their precision; floating point has room for them: below 1/8 it keeps its precision over 12 more octaves.
_FILLED = {torch.float8_e4m3fn: 1 / 8, torch.int8: 1.0}
#: Rows whose largest values are further apart than this get scales of their own: of e4m3's 15 octaves, 9 are left for
#: the values within a row.
_EVEN = 64.0


@dataclass(frozen=True)
class Expanded:
    """One layer as it is multiplied.

    weight: (out, in), codes of 8 bits or plain values. scale: float32 (out,), what a step of each row's codes is worth, or
    (1,) of all. bias: float32 (out,); plain_bias: the same in the precision between the products. step: float32 (1,), what
    a step of the inputs' codes is worth where that is known beforehand, and then folded: scale · step.
    """

    name: str
    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    plain_bias: Tensor | None
    step: Tensor | None
    folded: Tensor | None


def encode(weight: Tensor, codes: torch.dtype, *, whole: bool = False) -> tuple[Tensor, Tensor]:
    """Codes of a float32 matrix (rows, columns) and the scale that makes each row's largest value the largest code.

    The scale is (rows,), or (1,) for the matrix as a whole.
    """
    largest = weight.abs().amax()[None] if whole else weight.abs().amax(dim=1)
    scale = largest / LARGEST[codes]
    scale = torch.where(scale > 0, scale.clamp(min=2.0**-120), torch.ones_like(scale))
    scaled = (weight / scale[:, None]).clamp(-LARGEST[codes], LARGEST[codes])
    return (scaled if codes.is_floating_point else scaled.round()).to(codes), scale


def even(weight: Tensor) -> bool:
    """Whether the rows are so alike that one scale leaves each of them the whole precision of 8-bit floats."""
    rows = weight.abs().amax(dim=1)
    return bool(rows[rows > 0].amin() * _EVEN >= rows.amax()) if bool((rows > 0).any()) else False


def step_of(span: tuple[float, float], codes: torch.dtype) -> float:
    """What a step of the codes is worth for values of this range, symmetric around zero."""
    largest = max(abs(span[0]), abs(span[1])) or LARGEST[codes]
    return largest / (_FILLED[codes] * LARGEST[codes])
