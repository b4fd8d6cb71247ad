"""Attention backends: one function each, one table; chosen when a checkpoint is loaded, never stored in it.

    use_attention(model, "fa2", device, dtype)     # every block now attends with FlashAttention-2, or an error says why not

Each backend is called by its own operator, so what is asked for is what runs: PyTorch never substitutes another one.
`sdpa` is the exception by definition: PyTorch's own choice. Shapes: query, key, value (B, heads, N, head_dim).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petalite.errors import PetaliteError, did_you_mean

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
_HALF = (torch.float16, torch.bfloat16)


def math(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The formula as written: softmax(Q Kᵀ / √d) V, the whole (N, N) matrix in memory."""
    scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # B, H, N, N
    return scores.softmax(dim=-1) @ value


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`: PyTorch picks a kernel for the device and the shape."""
    return F.scaled_dot_product_attention(query, key, value)


def fa2(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """FlashAttention-2 (Dao, 2023, arXiv:2307.08691): PyTorch's kernel for CUDA or CPU, or the flash-attn package's."""
    if query.device.type == "cpu":
        return _output(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value))
    if _flash_attn_installed():
        from flash_attn import flash_attn_func

        out: Tensor = flash_attn_func(*(x.transpose(1, 2) for x in (query, key, value)))  # B, N, H, D
        return out.transpose(1, 2)
    return _output(torch.ops.aten._scaled_dot_product_flash_attention(query, key, value))


def efficient(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's memory-efficient kernel (xFormers; Rabe and Staats, 2021, arXiv:2112.05682)."""
    return _output(torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, False))


def cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """cuDNN's fused attention."""
    return _output(torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, False))


def _output(results: tuple[Tensor, ...]) -> Tensor:
    return results[0]  # the operators also return what a backward pass needs


def _everywhere(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def _fa2_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"fa2 runs on CUDA and CPUs, not on {device.type}; use sdpa"
    return _needs_ampere_half("fa2", device, dtype)


def _efficient_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    return None if device.type == "cuda" else f"efficient runs on CUDA only, not on {device.type}; use sdpa or fa2"


def _cudnn_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"cudnn runs on CUDA only, not on {device.type}; use sdpa or fa2"
    return _needs_ampere_half("cudnn", device, dtype)


def _needs_ampere_half(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return (
            f"{name} needs compute capability 8.0 or more, this GPU has {capability[0]}.{capability[1]}; use efficient"
        )
    if dtype not in _HALF:
        return f"{name} computes in fp16 or bf16 on CUDA, not in {str(dtype).removeprefix('torch.')}; use sdpa or --compute fp16"
    return None


def _flash_attn_installed() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


@dataclass(frozen=True)
class Backend:
    """An attention backend: `attend` computes it, `unavailable` says why it cannot run (or None)."""

    name: str
    about: str
    attend: Attend
    unavailable: Callable[[torch.device, torch.dtype], str | None]


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("math", "the formula as written", math, _everywhere),
        Backend("sdpa", "PyTorch's own choice of kernel", sdpa, _everywhere),
        Backend(
            "fa2", "FlashAttention-2: PyTorch's kernel on CUDA (SM80+) and CPUs, or flash-attn", fa2, _fa2_unavailable
        ),
        Backend("efficient", "memory-efficient attention, CUDA", efficient, _efficient_unavailable),
        Backend("cudnn", "cuDNN's fused attention, CUDA (SM80+)", cudnn, _cudnn_unavailable),
    )
}


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
        B, N, _C = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # B, H, N, D each
        x = self.attend(self.q_norm(query), self.k_norm(key), value)
        x = self.norm(x.transpose(1, 2).reshape(B, N, -1))  # B, N, C
        x = x if gate is None else x * gate
        projected: Tensor = self.proj(x)
        return projected


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
