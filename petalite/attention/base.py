"""What an attention backend is: a name, a function that attends, and one that says why it cannot.

A backend is one small file in this folder that defines `BACKEND`; nothing else has to be edited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


class Attend(Protocol):
    """What a backend computes: (B, H, N, D) three times, and where given a bias (B, 1, 1, N) -> (B, H, N, D)."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Backend:
    """An attention backend: `attend` computes it, `unavailable` says why it cannot run (or None)."""

    name: str
    about: str
    attend: Attend
    unavailable: Callable[[torch.device, torch.dtype], str | None]


def everywhere(device: torch.device, dtype: torch.dtype) -> str | None:
    """The `unavailable` of a backend that needs nothing in particular."""
    return None


def needs_ampere_half(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a kernel for 16 bits on SM80 and up does not run on this CUDA device, or None."""
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return (
            f"{name} needs compute capability 8.0 or more, this GPU has {capability[0]}.{capability[1]}; use efficient"
        )
    if dtype not in _HALF:
        return f"{name} computes in fp16 or bf16 on CUDA, not in {str(dtype).removeprefix('torch.')}; use sdpa or --compute fp16"
    return None


def mask(bias: Tensor | None, query: Tensor) -> Tensor | None:
    """The bias as PyTorch's kernels take it: (B, H, N, N), not copied, in the precision of the queries.

    Rows start at multiples of 16 numbers, which CUDA's kernels read faster (cuDNN) or insist on (memory-efficient).
    """
    if bias is None:
        return None
    N = bias.shape[-1]
    return F.pad(bias, (0, -N % 16)).to(query.dtype)[..., :N].expand(*query.shape[:3], -1)


def output(results: tuple[Tensor, ...]) -> Tensor:
    """The values of an operator that also returns what a backward pass needs."""
    return results[0]


def with_bias_channels(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heads widened from D to a multiple of 8, W, so that attention without a bias computes attention with one.

    A kernel divides the scores by √W where √D is wanted, so the queries grow by √(W / D). Their first new channels are
    constant and meet the bias in those of the keys: once rounded, once what rounding left, since 8 bits of a bfloat16
    would show. The rest are zeros. The first D channels of the output are the answer.
    """
    B, H, N, D = query.shape
    W = -(-(D + 2) // 8) * 8
    constant = 8.0  # about √W, and a power of two: exact in every precision
    whole = bias[:, :, 0] * (W**0.5 / constant)  # B, 1, N
    rounded = whole.to(query.dtype)
    wide = query.new_zeros(3, B, N, H, W).transpose(2, 3)  # 3, B, H, N, W, laid out as timm's qkv
    wide[0, ..., :D] = query * (W / D) ** 0.5
    wide[1, ..., :D] = key
    wide[2, ..., :D] = value
    wide[0, ..., D : D + 2] = constant
    wide[1, ..., D] = rounded
    wide[1, ..., D + 1] = whole - rounded
    query, key, value = wide.unbind(0)
    return query, key, value
