"""`efficient`: PyTorch's memory-efficient kernel (xFormers; Rabe and Staats, 2021, arXiv:2112.05682)."""

from __future__ import annotations

import torch
from torch import Tensor

from petalite.attention.base import Backend, mask, output


def efficient(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, H, N, D) three times, a bias (B, 1, 1, N) or None -> (B, H, N, D)."""
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return output(kernel(query, key, value, mask(bias, query), False))


def _unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    return None if device.type == "cuda" else f"efficient runs on CUDA only, not on {device.type}; use sdpa or fa2"


BACKEND = Backend("efficient", "memory-efficient attention, CUDA", efficient, _unavailable)
