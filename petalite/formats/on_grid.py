"""How a grid becomes a format: round to nearest to pack, expand once to multiply."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from petalite.formats.base import Format, Packed, checked
from petalite.formats.grid import Grid
from petalite.formats.plain import build_linear


def format_on_grid(name: str, about: str, bits: float, grid: Grid, error: float) -> Format:
    """A format that stores a weight's codes on `grid`; everything else of the checkpoint in bf16."""

    def pack(weight: Tensor) -> Packed:
        scales = grid.stored(grid.fit(checked(weight)))
        return grid.pack(grid.encode(weight, scales), scales)

    def build(
        packed: Mapping[str, Tensor], bias: Tensor | None, compute: torch.dtype, device: torch.device
    ) -> nn.Module:
        return build_linear(grid.unpack(packed), bias, compute, device)

    return Format(name, about, bits, pack, grid.unpack, build, rest="bf16", error=error, grid=grid)
