"""`int8`: LLM.int8 through bitsandbytes: weights in 8 bits a row, outlier columns of the activations in 16 bits.

Source: Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022 (arXiv:2208.07339).
The tensors on disk are bitsandbytes' own, so transformers loads them too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from petalite.formats.base import Format, Packed, checked
from petalite.formats.bitsandbytes_import import bitsandbytes

#: Activations beyond this are multiplied in 16 bits (bitsandbytes' and the paper's default).
OUTLIER_THRESHOLD = 6.0


def pack(weight: Tensor) -> Packed:
    """Pack a weight (out, in): int8 rows and their absolute maxima, `SCB` (out,)."""
    data, scales, _ = bitsandbytes().functional.int8_vectorwise_quant(checked(weight).contiguous().half())
    return {"weight": data, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}


def unpack(packed: Mapping[str, Tensor]) -> Tensor:
    """The weight (out, in) in float32."""
    return packed["weight"].float() * (packed["SCB"].float()[:, None] / 127)


def build(packed: Mapping[str, Tensor], bias: Tensor | None, compute: torch.dtype, device: torch.device) -> nn.Module:
    """A bitsandbytes Linear8bitLt; it quantizes activations a row at a time, and works in the dtype of its input."""
    bnb = bitsandbytes()
    out_features, in_features = packed["weight"].shape
    linear: nn.Module = bnb.nn.Linear8bitLt(
        in_features,
        out_features,
        bias=bias is not None,
        has_fp16_weights=False,
        threshold=OUTLIER_THRESHOLD,
        device="meta",
    )
    data = packed["weight"].to(device)
    linear.weight = bnb.nn.Int8Params(
        data, requires_grad=False, has_fp16_weights=False, CB=data, SCB=packed["SCB"].to(device)
    )
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(device, compute), requires_grad=False)
    return linear


FORMAT = Format(
    name="int8",
    about="LLM.int8: 8 bits a row, outlier activations in 16 bits (bitsandbytes)",
    bits=8.03,
    pack=pack,
    unpack=unpack,
    build=build,
    rest="bf16",
    error=0.02,
    package="bitsandbytes",
    transformers={
        "quant_method": "bitsandbytes",
        "load_in_8bit": True,
        "llm_int8_threshold": OUTLIER_THRESHOLD,
    },
)
