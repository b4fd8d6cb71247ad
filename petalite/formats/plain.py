"""`fp32`, `fp16`, `bf16`: the weight itself, in that precision. Any tool loads these checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from petalite.errors import PetaliteError
from petalite.formats.base import Format, Packed, checked

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def cast(tensor: Tensor, name: str) -> Tensor:
    """`tensor` in the plain format `name`. Raises PetaliteError where FP16 would overflow to infinity."""
    stored = tensor.to(DTYPES[name])
    if name == "fp16" and not torch.isfinite(stored).all():
        raise PetaliteError(f"values up to {tensor.abs().max():.3g} do not fit in fp16 (65,504); use bf16")
    return stored


def build_linear(weight: Tensor, bias: Tensor | None, compute: torch.dtype, device: torch.device) -> nn.Linear:
    """An ordinary Linear in the compute precision; weight (out, in)."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.to(device, compute), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(device, compute), requires_grad=False)
    return linear


def _plain(name: str, about: str, bits: float, error: float) -> Format:
    def pack(weight: Tensor) -> Packed:
        return {"weight": cast(checked(weight), name)}

    def unpack(packed: Mapping[str, Tensor]) -> Tensor:
        return packed["weight"].float()

    def build(
        packed: Mapping[str, Tensor], bias: Tensor | None, compute: torch.dtype, device: torch.device
    ) -> nn.Module:
        return build_linear(packed["weight"], bias, compute, device)

    return Format(name, about, bits, pack, unpack, build, rest=name, error=error)


FORMATS = (
    _plain("fp32", "32-bit floating point: the baseline", 32, 0.0),
    _plain("fp16", "16-bit floating point, 11 significant bits", 16, 2**-11),
    _plain("bf16", "16-bit floating point with FP32's range, 8 significant bits", 16, 2**-8),
)
