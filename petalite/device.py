"""Which device and which precision a variant runs in, and why it cannot where it cannot.

device = resolve_device("auto")                      # the first GPU, else the CPU
dtype = resolve_compute("auto", "nf4", device)       # fp16 on a GPU, bf16 on a CPU
"""

from __future__ import annotations

import torch

from petalite.errors import PetaliteError, did_you_mean
from petalite.formats.plain import DTYPES

COMPUTES = ("auto", *DTYPES)


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU. Raises PetaliteError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PetaliteError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise PetaliteError(f"device '{name}' is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise PetaliteError("no CUDA GPU is usable here; run `petalite doctor` to see why, or use --device cpu")
        index = device.index or 0
        if index >= torch.cuda.device_count():
            raise PetaliteError(f"{name} does not exist: this machine has {torch.cuda.device_count()} GPU(s)")
        return torch.device("cuda", index)
    return device


def resolve_compute(name: str, format: str, device: torch.device) -> str:
    """The precision of the matrix products: `fp32`, `fp16` or `bf16`.

    `auto` keeps fp32 for an fp32 checkpoint and bf16 for a bf16 one. The others (fp16 and the quantized formats) run
    in fp16 on a GPU; on a CPU in bf16, which processors multiply natively where fp16 is many times slower.
    """
    if name not in COMPUTES:
        raise PetaliteError(f"unknown compute '{name}'{did_you_mean(name, COMPUTES)}; known: {', '.join(COMPUTES)}")
    if name != "auto":
        return name
    if format in ("fp32", "bf16"):
        return format
    return "bf16" if device.type == "cpu" else "fp16"
