"""`cudnn`: cuDNN's fused attention, called by PyTorch's operator for it."""

from __future__ import annotations

import torch
from torch import Tensor

from petalite.attention.base import Backend, mask, needs_ampere_half, output


def cudnn(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, H, N, D) three times, a bias (B, 1, 1, N) or None -> (B, H, N, D)."""
    kernel = torch.ops.aten._scaled_dot_product_cudnn_attention
    return output(kernel(query, key, value, mask(bias, query), False))


def _unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"cudnn runs on CUDA only, not on {device.type}; use sdpa or fa2"
    return needs_ampere_half("cudnn", device, dtype)


BACKEND = Backend("cudnn", "cuDNN's fused attention, CUDA (SM80+)", cudnn, _unavailable)
