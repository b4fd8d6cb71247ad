"""Layers whose weight is always one that a format can store, and still learns: gradients pass straight through packing.

    layer = RoundedLinear.from_packed(grid, packed, bias)
    layer(x)                  # multiplies with exactly the weight that `layer.packed()` will hold
    layer.packed()            # the tensors on disk, now or after any number of training steps

On a uniform grid, what is learned are the codes (as real numbers, rounded in each forward pass), the scales and the
zero points. Block reconstruction trains them to reproduce a block's outputs, `petalite train --method qat` to classify.
`PackedLinear` does the same for any format, by packing its weight anew in each forward pass: slower.

Sources: Bengio et al., "Estimating or propagating gradients through stochastic neurons", 2013 (arXiv:1308.3432); learned
scales: Esser et al., "Learned step size quantization", 2020 (arXiv:1902.08153).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petalite.formats.base import Format, Packed
from petalite.formats.grid import Scales, UniformGrid


class RoundedLinear(nn.Module):
    """A Linear on a uniform grid. Parameters: `code` (out, in), `log_scale` and `zero` (out, groups), `bias`."""

    def __init__(self, grid: UniformGrid, codes: Tensor, scales: Scales, bias: Tensor | None) -> None:
        super().__init__()
        self.grid = grid
        self.code = nn.Parameter(codes.float())
        self.log_scale = nn.Parameter(scales.scale.clamp(min=2.0**-40).log2())
        self.zero = nn.Parameter(scales.zero.clone(), requires_grad=not grid.symmetric)
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)

    latent = "code"

    @property
    def width(self) -> float:
        """How many units of `code` span the grid."""
        return float(2**self.grid.bits)

    @torch.no_grad()
    def step(self) -> Tensor:
        """What one unit of `code` is worth, float32 (out, in) or (out, 1)."""
        return self.grid.spread(self.grid.stored(Scales(self.log_scale.exp2(), self.zero)).scale, self.code.shape[1])

    @classmethod
    def from_packed(cls, grid: UniformGrid, packed: Mapping[str, Tensor], bias: Tensor | None) -> RoundedLinear:
        """The layer whose weight is what `packed` unpacks to."""
        return cls(grid, *grid.codes(packed), bias)

    @property
    def weight(self) -> Tensor:
        """The weight as it will stand on disk, float32 (out, in); differentiable."""
        exact = Scales(self.log_scale.exp2(), self.zero)
        with torch.no_grad():
            stored = self.grid.stored(exact)
        scale = through(exact.scale, stored.scale)
        zero = through(exact.zero, stored.zero)
        code = self.code.clamp(0, self.grid.highest)
        code = through(code, code.detach().round())
        columns = code.shape[1]
        return (code - self.grid.spread(zero, columns)) * self.grid.spread(scale, columns)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        return F.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def packed(self) -> Packed:
        """The tensors on disk."""
        codes = self.code.clamp(0, self.grid.highest).round().to(torch.uint8)
        return self.grid.pack(codes, Scales(self.log_scale.exp2(), self.zero))


class PackedLinear(nn.Module):
    """A Linear in any format. Parameters: `shift` (out, in), what was added to the weight since it was packed, in units of
    `unit` (out, 1), the width of each row's values; and `bias`."""

    latent = "shift"
    width = 1.0
    base: Tensor
    unit: Tensor

    def __init__(self, format: Format, packed: Mapping[str, Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self.format, self.given = format, dict(packed)
        base = format.unpack(packed)
        self.register_buffer("base", base, persistent=False)
        unit = base.amax(dim=1, keepdim=True) - base.amin(dim=1, keepdim=True)
        self.register_buffer("unit", unit.clamp(min=2.0**-40), persistent=False)
        self.shift = nn.Parameter(torch.zeros_like(base))
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weight as it will stand on disk, float32 (out, in); differentiable."""
        latent = self.base + self.unit * self.shift
        with torch.no_grad():
            stored = self.format.unpack(self._pack(latent))
        return through(latent, stored)

    def step(self) -> Tensor:
        """What one unit of `shift` is worth, float32 (out, 1)."""
        return self.unit

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        return F.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def packed(self) -> Packed:
        """The tensors on disk."""
        return self._pack(self.base + self.unit * self.shift)

    def _pack(self, latent: Tensor) -> Packed:
        # packing what was unpacked does not give the same scales in every format, so what was given stays until it moves
        return dict(self.given) if torch.equal(latent, self.base) else self.format.pack(latent.detach())


TrainableLinear: TypeAlias = RoundedLinear | PackedLinear


def trainable_linear(format: Format, packed: Mapping[str, Tensor], bias: Tensor | None) -> TrainableLinear:
    """The layer whose weight is what `packed` unpacks to."""
    if isinstance(format.grid, UniformGrid):
        return RoundedLinear.from_packed(format.grid, packed, bias)
    return PackedLinear(format, packed, bias)


def through(value: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` in the forward pass, the gradient of `value` in the backward pass."""
    return rounded.detach() + (value - value.detach())  # the difference is exactly zero
