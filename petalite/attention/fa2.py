"""`fa2`: FlashAttention-2 (Dao, 2023, arXiv:2307.08691), PyTorch's kernel for CUDA or CPUs, or the flash-attn package's."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from petalite.attention.base import Backend, mask, needs_ampere_half, output, with_bias_channels


def fa2(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, H, N, D) three times, a bias (B, 1, 1, N) or None -> (B, H, N, D)."""
    if query.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return output(kernel(query, key, value, attn_mask=mask(bias, query)))
    if bias is not None:  # the CUDA kernels take none, so it travels in channels of the keys
        return fa2(*with_bias_channels(query, key, value, bias))[..., : query.shape[-1]]
    if _flash_attn_installed():
        from flash_attn import flash_attn_func

        out: Tensor = flash_attn_func(*(x.transpose(1, 2) for x in (query, key, value)))  # B, N, H, D
        return out.transpose(1, 2)
    return output(torch.ops.aten._scaled_dot_product_flash_attention(query, key, value))


def _flash_attn_installed() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"fa2 runs on CUDA and CPUs, not on {device.type}; use sdpa"
    return needs_ampere_half("fa2", device, dtype)


BACKEND = Backend(
    "fa2", "FlashAttention-2: PyTorch's kernel on CUDA (SM80+) and CPUs, or flash-attn", fa2, _unavailable
)
