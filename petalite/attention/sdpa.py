"""`sdpa`: `torch.nn.functional.scaled_dot_product_attention`, where PyTorch picks a kernel for the device and the shape."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from petalite.attention.base import Backend, everywhere, mask


def sdpa(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, H, N, D) three times, a bias (B, 1, 1, N) or None -> (B, H, N, D)."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask(bias, query))


BACKEND = Backend("sdpa", "PyTorch's own choice of kernel", sdpa, everywhere)
