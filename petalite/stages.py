"""A Vision Transformer cut into stages, so that what several forward passes share is computed once.

    tokens = embed(model, pixels)                       # (B, 3, H, W) -> (B, N, C): patches, prefix tokens, positions
    tokens = run_blocks(model, tokens, 0, 7)            # blocks 0 to 6
    logits = finish(model, run_blocks(model, tokens, 7))

The three together are the model's own forward pass, bit for bit. What one block hands to the next is only passed on:
a block may return fewer tokens than it took.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def depth(model: nn.Module) -> int:
    """How many blocks the model has."""
    return len(_vit(model).blocks)


def embed(model: nn.Module, pixels: Tensor) -> Tensor:
    """What the first block takes (B, N, C); pixels (B, 3, H, W) normalized, in the model's precision."""
    vit = _vit(model)
    tokens: Tensor = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(pixels))))
    return tokens


def run_blocks(model: nn.Module, tokens: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """What block `start` takes -> what block `stop` would take; the blocks from `start` up to `stop` (default: all)."""
    blocks = _vit(model).blocks
    for block in blocks[start : len(blocks) if stop is None else stop]:
        tokens = block(tokens)
    return tokens


def finish(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits (B, classes) from what the last block returns: final norm, pooling, head."""
    vit = _vit(model)
    logits: Tensor = vit.forward_head(vit.norm(tokens))
    return logits


def _vit(model: nn.Module) -> Any:
    # timm's VisionTransformer, whose parts nn.Module types as Tensor | Module
    return model
