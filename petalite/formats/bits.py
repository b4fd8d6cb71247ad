"""Codes of a few bits, packed with no gap inside a row: 192 codes of 3 bits are 72 bytes.

packed = pack_bits(codes, bits=3)            # uint8 (rows, ceil(columns * 3 / 8))
unpack_bits(packed, bits=3, columns=192)     # the codes again

The first code stands in the lowest bits of the first byte.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 (rows, columns), each below 2**bits -> bytes uint8 (rows, ceil(columns * bits / 8))."""
    if bits == 8:
        return codes.to(torch.uint8)
    rows, columns = codes.shape
    stream = (codes[:, :, None] >> _shifts(bits, codes)) & 1  # rows, columns, bits: lowest bit first
    stream = stream.reshape(rows, columns * bits)
    padded = torch.nn.functional.pad(stream, (0, -(columns * bits) % 8)).reshape(rows, -1, 8)
    return (padded << _shifts(8, codes)).sum(dim=2, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Bytes uint8 (rows, ceil(columns * bits / 8)) -> codes uint8 (rows, columns)."""
    if bits == 8:
        return packed
    rows = packed.shape[0]
    stream = ((packed[:, :, None] >> _shifts(8, packed)) & 1).reshape(rows, -1)[:, : columns * bits]
    return (stream.reshape(rows, columns, bits) << _shifts(bits, packed)).sum(dim=2, dtype=torch.uint8)


def _shifts(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=like.device)
