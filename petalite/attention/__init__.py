"""Attention backends: a file each, found by being in this folder; chosen when a checkpoint is loaded, never stored in it.

    use_attention(model, "fa2", device, dtype)     # every block now attends with FlashAttention-2, or an error says why not

Each backend is called by its own operator, so what is asked for is what runs: PyTorch never substitutes another one.
`sdpa` is the exception by definition: PyTorch's own choice. Shapes: query, key, value (B, heads, N, head_dim).
A bias (B, 1, 1, N), float32, is added to the scaled scores of every query: softmax(Q Kᵀ / √d + bias) V.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import torch

from petalite.attention.base import Attend, Backend, with_bias_channels
from petalite.attention.formula import math
from petalite.attention.layer import Attention
from petalite.errors import PetaliteError, did_you_mean

__all__ = [
    "BACKENDS",
    "Attend",
    "Attention",
    "Backend",
    "math",
    "resolve_attention",
    "use_attention",
    "with_bias_channels",
]


def _discover() -> dict[str, Backend]:
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    found: list[Backend] = [module.BACKEND for module in modules if hasattr(module, "BACKEND")]
    return {backend.name: backend for backend in found}


#: Every backend by name, in the order of their files.
BACKENDS = _discover()


def resolve_attention(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend of that name; `auto` is PyTorch's choice. Raises PetaliteError when it is unknown or cannot run."""
    name = "sdpa" if name == "auto" else name
    if name not in BACKENDS:
        raise PetaliteError(
            f"unknown attention '{name}'{did_you_mean(name, BACKENDS)}; known: auto, {', '.join(BACKENDS)}"
        )
    backend = BACKENDS[name]
    if reason := backend.unavailable(device, dtype):
        raise PetaliteError(reason)
    return backend


def use_attention(model: Any, name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """Make every block of a timm ViT attend with backend `name`, after a small trial of it on the device.

    Raises PetaliteError when the backend is unknown, cannot run here, or fails the trial with this model's head size.
    """
    backend = resolve_attention(name, device, dtype)
    for block in model.blocks:
        block.attn = Attention(block.attn, backend.attend)
    first = model.blocks[0].attn
    trial = torch.zeros(1, first.num_heads, 17, first.head_dim, device=device, dtype=dtype)
    try:
        with torch.inference_mode():
            backend.attend(trial, trial, trial)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise PetaliteError(
            f"attention {backend.name} cannot run here with heads of {first.head_dim}: {reason}"
        ) from error
    return backend
