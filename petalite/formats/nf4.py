"""`nf4`: 4-bit NormalFloat in blocks of 64 with double quantization, through bitsandbytes.

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023 (arXiv:2305.14314). The tensors on disk
are bitsandbytes' own, so transformers loads them too. The weight is unpacked on every call and multiplied in 16 bits:
smaller, not faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from petalite.formats.base import Format, Packed, checked
from petalite.formats.bitsandbytes_import import bitsandbytes

STATE = "weight.quant_state.bitsandbytes__nf4"


def pack(weight: Tensor) -> Packed:
    """Pack a weight (out, in). Never from a live module: on a CPU bitsandbytes repacks a Linear4bit at its first
    forward pass, and what it saves afterwards is silently wrong."""
    bnb = bitsandbytes()
    data, state = bnb.functional.quantize_4bit(
        checked(weight).contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    return {"weight": data, **{f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}}


def unpack(packed: Mapping[str, Tensor]) -> Tensor:
    """The weight (out, in) in float32.

    Written out here, since bitsandbytes' own unpacking on a CPU is wrong for rows that are not a multiple of 64 long.
    """
    state = _state(packed, packed["weight"].device)
    absmax = bitsandbytes().functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    codes = packed["weight"].flatten()
    values = state.code[
        torch.stack([codes >> 4, codes & 15], dim=1).flatten().long()
    ]  # two to a byte, the high half first
    values = values[: state.shape.numel()]
    weight: Tensor = values * absmax.repeat_interleave(state.blocksize)[: len(values)]
    return weight.view(state.shape).float()


class _UnpackingLinear(nn.Module):
    """Unpacks its weight on each call and multiplies: for the shapes that bitsandbytes' CPU kernels refuse."""

    def __init__(self, packed: Mapping[str, Tensor], bias: Tensor | None, compute: torch.dtype) -> None:
        super().__init__()
        self.packed, self.bias, self.compute = dict(packed), bias, compute

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, unpack(self.packed).to(self.compute), self.bias)


def build(packed: Mapping[str, Tensor], bias: Tensor | None, compute: torch.dtype, device: torch.device) -> nn.Module:
    """A bitsandbytes Linear4bit that multiplies in `compute`; on a CPU, where its kernels take rows of a multiple of 64
    and a multiple of 32 of them, a plain unpack-and-multiply for other shapes."""
    bnb = bitsandbytes()
    state = _state(packed, torch.device("cpu"))
    if device.type == "cpu" and (state.shape[1] % 64 or state.shape[0] % 32):
        return _UnpackingLinear(packed, None if bias is None else bias.to(compute), compute)
    linear: nn.Module = bnb.nn.Linear4bit(
        state.shape[1],
        state.shape[0],
        bias=bias is not None,
        compute_dtype=compute,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    # a copy: bitsandbytes repacks the storage in place on some processors, and the caller's tensors must not change
    linear.weight = bnb.nn.Params4bit.from_prequantized(
        packed["weight"].clone(), _statistics(packed), requires_grad=False, device=device, module=linear
    )
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(device, compute), requires_grad=False)
    return linear


def _state(packed: Mapping[str, Tensor], device: torch.device) -> Any:
    return bitsandbytes().functional.QuantState.from_dict(_statistics(packed), device=device)


def _statistics(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in packed.items() if name != "weight"}


FORMAT = Format(
    name="nf4",
    about="4-bit NormalFloat, blocks of 64, double quantization (bitsandbytes)",
    bits=4.127,
    pack=pack,
    unpack=unpack,
    build=build,
    rest="bf16",
    error=0.12,
    package="bitsandbytes",
    transformers={
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    },
)
