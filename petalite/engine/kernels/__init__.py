"""Triton kernels for what lies between the matrix products, and for those that libraries do not do well.

    from petalite.engine.kernels.norm import norm
    codes, scale = norm(x, weight, bias, 1e-6, add=product, dtype=torch.float8_e4m3fn)

One idea a file, a function of PyTorch tensors each. Importing this package needs no Triton; importing one of its modules
does. No kernel waits for the device or reads from it, and each chooses its launch by shape alone, so all can be captured
in a CUDA graph.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Values and what one step of their codes is worth: None for plain values, else float32, one for all or one a row.
Quantized = tuple[Tensor, Tensor | None]

#: Shared memory that a program may have on an H100 or H200.
HOPPER_BYTES = 227 * 1024

#: Fewer leave most of a large device idle.
_FEW_ROWS, _FEW_VALUES = 4_096, 1 << 22


@dataclass(frozen=True)
class Launch:
    """How a kernel over rows is cut: `rows` a program, each padded to `block` values (a power of two), by `warps`."""

    rows: int
    block: int
    warps: int


def row_launch(rows: int, columns: int) -> Launch:
    """The launch for a matrix (rows, columns) of which each row is reduced.

    With few rows it counts how soon the last one is done: a thread takes 8 values, one 16-byte access. With many it
    counts how much is under way: a row belongs to one warp, which reduces it without a barrier, as long as that leaves
    no more than 32 values to a thread.
    """
    block = max(16, power_of_two(columns))
    if block <= 256:
        return Launch(1_024 // block, block, 4) if rows >= _FEW_ROWS else Launch(1, block, 1)
    return Launch(1, block, min(max(block // (256 if rows < _FEW_ROWS else 1_024), 1), 16))


def line_launch(count: int) -> Launch:
    """The launch for `count` values none of which depends on another: 8 a thread, or 32 where there are many."""
    return Launch(1, 1_024 if count < _FEW_VALUES else 4_096, 4)


def options(warps: int, device: torch.device) -> dict[str, Any]:
    """What every launch is given: `a * b + c` is one instruction with one rounding, whatever Triton's default."""
    return {"num_warps": warps, "enable_fp_fusion": True, **({"launch_pdl": True} if dependent(device) else {})}


def dependent(device: torch.device) -> bool:
    """Whether kernels overlap their start with the end of the kernel before them (Hopper and newer).

    Such a kernel lets the next one start at once (`gdc_launch_dependents`) and itself waits for the results of the one
    before (`gdc_wait`) ahead of its first access to memory. This hides what a launch costs, in CUDA graphs too.
    """
    return device.type == "cuda" and _capability(device) >= (9, 0)


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that a program may have; where there is no GPU to ask, what an H200 has."""
    if device.type != "cuda":
        return HOPPER_BYTES
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`."""
    return 1 << max(count - 1, 0).bit_length()
