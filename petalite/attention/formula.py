"""`math`: softmax(Q Kᵀ / √d) V as written, the whole (N, N) matrix in memory. Runs anywhere; what others are held against."""

from __future__ import annotations

from torch import Tensor

from petalite.attention.base import Backend, everywhere


def math(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, H, N, D) three times, a bias (B, 1, 1, N) or None -> (B, H, N, D)."""
    scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # B, H, N, N
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return scores.softmax(dim=-1) @ value


BACKEND = Backend("math", "the formula as written", math, everywhere)
