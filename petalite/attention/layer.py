"""timm's attention layer with its inner product done by a backend."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from petalite.attention.base import Attend
from petalite.errors import PetaliteError


class Attention(nn.Module):
    """timm's `Attention` with the inner product done by a backend; the same layers under the same names."""

    def __init__(self, source: Any, attend: Attend) -> None:
        super().__init__()
        self.num_heads, self.head_dim = source.num_heads, source.head_dim
        self.qkv, self.proj = source.qkv, source.proj
        self.q_norm, self.k_norm = source.q_norm, source.k_norm
        self.norm = getattr(source, "norm", nn.Identity())
        self.gate = getattr(source, "gate", None)
        self.attend = attend

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, **_: object) -> Tensor:
        """(B, N, C) -> (B, N, C). Masks are refused: a classifier attends to every patch."""
        if attn_mask is not None:
            raise PetaliteError("attention masks are not supported")
        query, key, value = self.heads(x)
        return self.output(self.attend(query, key, value), x)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C) -> query, key, value, (B, H, N, D) each."""
        B, N, _C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        return self.q_norm(query), self.k_norm(key), value

    def output(self, attended: Tensor, x: Tensor) -> Tensor:
        """What the backend returned (B, H, N, D), and what it was computed from (B, N, C) -> (B, N, C)."""
        attended = self.norm(attended.transpose(1, 2).flatten(2))  # B, N, C
        attended = attended if self.gate is None else attended * self.gate(x).sigmoid()
        projected: Tensor = self.proj(attended)
        return projected
