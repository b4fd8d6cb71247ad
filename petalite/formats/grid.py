"""The values that a weight may take: a grid. One scale (and perhaps a zero point) for each group of inputs of each row.

    grid = UniformGrid(bits=4, group=64)
    scales = grid.stored(grid.fit(weight))       # as they will stand on disk, in 8 bits each
    codes = grid.encode(weight, scales)
    grid.decode(codes, scales)                   # the nearest values on the grid

Formats pack codes and scales; calibration looks for better ones. Scales stand on disk as 8-bit logarithms between the
lowest and the highest of every 256 groups (a second-level scale), zero points as 8-bit fractions of the code range, so
a group of 64 four-bit codes costs 4.25 bits a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from petalite.formats.bits import pack_bits, unpack_bits

#: Groups that share a second-level scale.
SUPER = 256
_FLOOR = 2.0**-40  # a scale that stands for "all zero"


@dataclass(frozen=True)
class Scales:
    """value = scale · (code − zero); both float32 (rows, groups)."""

    scale: Tensor
    zero: Tensor


class Grid(Protocol):
    """What calibration and training need to know of a format: how values are rounded to it and how they are stored."""

    @property
    def group(self) -> int | None:
        """Inputs that share a scale; None for a whole row."""
        ...

    def fit(self, weight: Tensor) -> Scales:
        """Scales that cover every value of `weight` (rows, columns)."""
        ...

    def stored(self, scales: Scales) -> Scales:
        """The same scales after a trip to disk."""
        ...

    def encode(self, weight: Tensor, scales: Scales) -> Tensor:
        """The nearest code of each value, uint8 (rows, columns)."""
        ...

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        """float32 (rows, columns)."""
        ...

    def pack(self, codes: Tensor, scales: Scales) -> dict[str, Tensor]:
        """The tensors on disk."""
        ...

    def unpack(self, packed: Mapping[str, Tensor]) -> Tensor:
        """The weight, float32 (rows, columns)."""
        ...


@dataclass(frozen=True)
class UniformGrid:
    """2**bits equally spaced values in each group.

    group: inputs of a row that share a scale, None for the whole row; the last group of a row may be shorter.
    symmetric: zero stands in the middle of the codes and is not stored.
    """

    bits: int
    group: int | None
    symmetric: bool = False

    @property
    def highest(self) -> int:
        """The highest code; the lowest is 0."""
        return int(2**self.bits) - 1

    @property
    def middle(self) -> float:
        """The zero point of a symmetric grid."""
        return float(2 ** (self.bits - 1))

    def fit(self, weight: Tensor) -> Scales:
        """The narrowest scales that cover every value, and zero."""
        low, high = (bound.float() for bound in _bounds(weight, self.group))
        low, high = low.clamp(max=0), high.clamp(min=0)
        if self.symmetric:
            scale = torch.maximum(high / (self.highest - self.middle), -low / self.middle)
            return Scales(scale, torch.full_like(scale, self.middle))
        scale = (high - low) / self.highest
        return Scales(scale, -low / scale.clamp(min=_FLOOR))

    def stored(self, scales: Scales) -> Scales:
        """The scales as 8 bits hold them."""
        codes, second = _pack_scale(scales.scale)
        zero = scales.zero if self.symmetric else self._zero(self._zero_codes(scales.zero))
        return Scales(_unpack_scale(codes, second), zero)

    def encode(self, weight: Tensor, scales: Scales) -> Tensor:
        """The nearest codes."""
        scale, zero = (self.spread(part, weight.shape[1]) for part in (scales.scale, scales.zero))
        return (weight.float() / scale.clamp(min=_FLOOR) + zero).round_().clamp_(0, self.highest).to(torch.uint8)

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        """The values that codes stand for."""
        scale, zero = (self.spread(part, codes.shape[1]) for part in (scales.scale, scales.zero))
        return (codes.float() - zero) * scale

    def spread(self, part: Tensor, columns: int) -> Tensor:
        """(rows, groups) -> a value for each of the `columns` inputs, or one for all that broadcasts."""
        return part if self.group is None else part.repeat_interleave(self.group, dim=1)[:, :columns]

    def pack(self, codes: Tensor, scales: Scales) -> dict[str, Tensor]:
        """`weight` packed codes; `scale` and (unless symmetric) `zero` uint8 (rows, groups); `second` float32."""
        scale, second = _pack_scale(scales.scale)
        packed = {"weight": pack_bits(codes, self.bits), "scale": scale, "second": second}
        if not self.symmetric:
            packed["zero"] = self._zero_codes(scales.zero)
        columns = codes.shape[1]
        if columns * self.bits % 8:  # the row does not fill its last byte, from which its length would be known
            packed["columns"] = torch.tensor(columns, dtype=torch.int32)
        return packed

    def unpack(self, packed: Mapping[str, Tensor]) -> Tensor:
        """The weight, float32 (rows, columns)."""
        return self.decode(*self.codes(packed))

    def codes(self, packed: Mapping[str, Tensor]) -> tuple[Tensor, Scales]:
        """What `pack` was given, the scales as `stored` makes them."""
        scale = _unpack_scale(packed["scale"], packed["second"])
        zero = torch.full_like(scale, self.middle) if self.symmetric else self._zero(packed["zero"])
        columns = int(packed["columns"]) if "columns" in packed else packed["weight"].shape[1] * 8 // self.bits
        return unpack_bits(packed["weight"], self.bits, columns), Scales(scale, zero)

    def _zero_codes(self, zero: Tensor) -> Tensor:
        return (zero * (255 / self.highest)).round().clamp(0, 255).to(torch.uint8)

    def _zero(self, codes: Tensor) -> Tensor:
        return codes.float() * (self.highest / 255)


@dataclass(frozen=True)
class Float8Grid:
    """The values of an 8-bit floating-point number (e4m3: 4 bits of exponent, 3 of mantissa), one scale a row.

    Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022 (arXiv:2209.05433).
    """

    group: int | None = None
    largest: float = 448.0

    def fit(self, weight: Tensor) -> Scales:
        """Each row's largest value is the format's largest."""
        scale = weight.float().abs().amax(dim=1, keepdim=True) / self.largest
        return Scales(scale, torch.zeros_like(scale))

    def stored(self, scales: Scales) -> Scales:
        """The scales as 8 bits hold them."""
        return Scales(_unpack_scale(*_pack_scale(scales.scale)), scales.zero)

    def encode(self, weight: Tensor, scales: Scales) -> Tensor:
        """The nearest float8, as its bits."""
        values = (weight.float() / scales.scale.clamp(min=_FLOOR)).clamp(-self.largest, self.largest)
        return values.to(torch.float8_e4m3fn).view(torch.uint8)

    def decode(self, codes: Tensor, scales: Scales) -> Tensor:
        """The values that the bits stand for."""
        return codes.view(torch.float8_e4m3fn).float() * scales.scale

    def pack(self, codes: Tensor, scales: Scales) -> dict[str, Tensor]:
        """`weight` float8 (rows, columns), `scale` uint8 (rows, 1), `second` float32."""
        scale, second = _pack_scale(scales.scale)
        return {"weight": codes.view(torch.float8_e4m3fn), "scale": scale, "second": second}

    def unpack(self, packed: Mapping[str, Tensor]) -> Tensor:
        """The weight, float32 (rows, columns)."""
        return packed["weight"].float() * _unpack_scale(packed["scale"], packed["second"])


def _bounds(weight: Tensor, group: int | None) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each group, (rows, groups) both."""
    if group is None:
        return weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
    parts = weight.split(group, dim=1)
    return torch.stack([part.amin(dim=1) for part in parts], 1), torch.stack([part.amax(dim=1) for part in parts], 1)


def _pack_scale(scale: Tensor) -> tuple[Tensor, Tensor]:
    """Scales (rows, groups) -> 8-bit logarithms of the same shape, and their range (blocks of 256 groups, 2)."""
    logs = scale.float().clamp(min=_FLOOR).log2().flatten()
    blocks = torch.nn.functional.pad(logs[None], (0, -len(logs) % SUPER), mode="replicate").reshape(-1, SUPER)
    # a group of zeros does not widen the range of its neighbours: any scale stands for it
    used = torch.where(blocks > torch.tensor(_FLOOR).log2(), blocks, blocks.amax(dim=1, keepdim=True))
    low, high = used.amin(dim=1), used.amax(dim=1)
    step = ((high - low) / 255).clamp(min=1e-12)
    codes = ((blocks - low[:, None]) / step[:, None]).round().clamp(0, 255).to(torch.uint8)
    return codes.flatten()[: len(logs)].reshape(scale.shape), torch.stack([low, high], dim=1)


def _unpack_scale(codes: Tensor, second: Tensor) -> Tensor:
    low, high = (bound.repeat_interleave(SUPER)[: codes.numel()].reshape(codes.shape) for bound in second.unbind(1))
    return (low + codes.float() * ((high - low) / 255)).exp2()
