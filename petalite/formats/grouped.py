"""`int4`, `int3`, `int2`: whole numbers of few bits, in groups of 32, 64 or 128 inputs that share a scale.

    get_format("int4")            # groups of 64, each with a scale and a zero point: 4.25 bits a weight
    get_format("int3-g128-sym")   # groups of 128 with a scale alone: 3.06 bits

The weight is expanded once, when a checkpoint is loaded, and multiplied in the compute precision.
"""

from __future__ import annotations

from petalite.formats.base import Format
from petalite.formats.grid import UniformGrid
from petalite.formats.on_grid import format_on_grid

GROUPS = (64, 32, 128)
#: Bound on the relative error of round-to-nearest for normally distributed weights, with a zero point.
_ERRORS = {4: 0.11, 3: 0.22, 2: 0.55}


def _format(bits: int, group: int, symmetric: bool) -> Format:
    name = f"int{bits}" + ("" if group == 64 else f"-g{group}") + ("-sym" if symmetric else "")
    about = (
        f"{bits}-bit integers in groups of {group}, "
        + ("scale" if symmetric else "scale and zero point")
        + " in 8 bits"
    )
    stored = 8 / group if symmetric else 16 / group
    return format_on_grid(
        name,
        about,
        bits + stored,
        UniformGrid(bits, group, symmetric),
        error=_ERRORS[bits] * (1.2 if symmetric else 1.0),
    )


FORMATS = tuple(
    _format(bits, group, symmetric)
    for bits in (4, 3, 2)
    for symmetric in ((False, True) if bits > 2 else (False,))
    for group in GROUPS
)
