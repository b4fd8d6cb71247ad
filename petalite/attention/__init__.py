"""Attention backends: one function each, one table; chosen when a checkpoint is loaded, never stored in it.

    use_attention(model, "fa2", device, dtype)     # every block now attends with FlashAttention-2, or an error says why not

Each backend is called by its own operator, so what is asked for is what runs: PyTorch never substitutes another one.
`sdpa` is the exception by definition: PyTorch's own choice. Shapes: query, key, value (B, heads, N, head_dim).
A bias (B, 1, 1, N), float32, is added to the scaled scores of every query: softmax(Q Kᵀ / √d + bias) V.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petalite.errors import PetaliteError, did_you_mean

_HALF = (torch.float16, torch.bfloat16)


class Attend(Protocol):
    """What a backend computes: (B, H, N, D) three times, and where given a bias (B, 1, 1, N) -> (B, H, N, D)."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor: ...


def math(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """The formula as written: softmax(Q Kᵀ / √d) V, the whole (N, N) matrix in memory."""
    scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # B, H, N, N
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return scores.softmax(dim=-1) @ value


def sdpa(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`: PyTorch picks a kernel for the device and the shape."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=_mask(bias, query))


def fa2(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """FlashAttention-2 (Dao, 2023, arXiv:2307.08691): PyTorch's kernel for CUDA or CPU, or the flash-attn package's."""
    if query.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return _output(kernel(query, key, value, attn_mask=_mask(bias, query)))
    if bias is not None:  # the CUDA kernels take none, so it travels in channels of the keys
        return fa2(*with_bias_channels(query, key, value, bias))[..., : query.shape[-1]]
    if _flash_attn_installed():
        from flash_attn import flash_attn_func

        out: Tensor = flash_attn_func(*(x.transpose(1, 2) for x in (query, key, value)))  # B, N, H, D
        return out.transpose(1, 2)
    return _output(torch.ops.aten._scaled_dot_product_flash_attention(query, key, value))


def efficient(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """PyTorch's memory-efficient kernel (xFormers; Rabe and Staats, 2021, arXiv:2112.05682)."""
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return _output(kernel(query, key, value, _mask(bias, query), False))


def cudnn(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """cuDNN's fused attention."""
    kernel = torch.ops.aten._scaled_dot_product_cudnn_attention
    return _output(kernel(query, key, value, _mask(bias, query), False))


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


def _mask(bias: Tensor | None, query: Tensor) -> Tensor | None:
    """The bias as PyTorch's kernels take it: (B, H, N, N), not copied, in the precision of the queries.

    Rows start at multiples of 16 numbers, which CUDA's kernels read faster (cuDNN) or insist on (memory-efficient).
    """
    if bias is None:
        return None
    N = bias.shape[-1]
    return F.pad(bias, (0, -N % 16)).to(query.dtype)[..., :N].expand(*query.shape[:3], -1)


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
