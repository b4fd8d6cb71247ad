"""Which device and which precision a variant runs in, and why it cannot where it cannot.

device = resolve_device("auto")                      # the first GPU, else the CPU
dtype = resolve_compute("auto", "nf4", device)       # of plain modules: fp16 on a GPU, bf16 on a CPU
unavailable_compute("fp8", (8, 0), "cuda")           # 'fp8 needs compute capability 8.9 or more, …'
surely_cpu("auto")                                   # True where there is no GPU: PyTorch need not be asked
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from petalite.errors import PetaliteError, did_you_mean

if TYPE_CHECKING:
    import torch

#: Precisions of the products, and the CUDA compute capability from which a GPU multiplies in them.
CAPABILITIES = {"fp32": (0, 0), "fp16": (7, 0), "bf16": (8, 0), "int8": (7, 5), "fp8": (8, 9)}
COMPUTES = tuple(CAPABILITIES)
#: The precisions of plain modules.
_PLAIN = ("fp32", "fp16", "bf16")
#: What PyTorch's CUDA begins with, and what its ROCm does.
_CUDA_DRIVER, _ROCM_DRIVER = "libcuda.so.1", Path("/dev/kfd")


def surely_cpu(name: str) -> bool:
    """Whether `resolve_device(name)` is the CPU, as far as can be told without PyTorch: False where it has to be asked."""
    if name != "auto":
        return name == "cpu"
    if torch := sys.modules.get("torch"):
        return not torch.cuda.is_available()
    if sys.platform == "darwin":
        return True
    if sys.platform != "linux" or _ROCM_DRIVER.exists():
        return False
    try:
        ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return True
    return False


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU. Raises PetaliteError for a device that is not there."""
    import torch

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


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of a GPU, (major, minor); None for a CPU."""
    import torch

    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def unavailable_compute(name: str, capability: tuple[int, int] | None, device_type: str) -> str | None:
    """Why a device does not multiply in one of COMPUTES, and what to use; None where it does."""
    major, minor = CAPABILITIES[name]
    if capability is None:
        if name in _PLAIN or (name == "int8" and device_type == "cpu"):
            return None
        where = "a CPU" if device_type == "cpu" else device_type
        return f"{name} runs on NVIDIA GPUs of compute capability {major}.{minor} or more, not on {where}; use bf16 or fp32"
    if capability >= (major, minor):
        return None
    others = ("int8", "fp16", "fp32") if name == "fp8" else ("fp16", "fp32")
    best = next(other for other in others if capability >= CAPABILITIES[other])
    return f"{name} needs compute capability {major}.{minor} or more, this GPU has {capability[0]}.{capability[1]}; use {best}"


def resolve_compute(name: str, format: str, device: torch.device) -> str:
    """The precision of the matrix products of plain modules: `fp32`, `fp16` or `bf16`.

    `auto` keeps fp32 for an fp32 checkpoint and bf16 for a bf16 one. The others (fp16 and the quantized formats) run
    in fp16 on a GPU; on a CPU in bf16, which processors multiply natively where fp16 is many times slower.
    Raises PetaliteError for an unknown precision, and for those of 8 bits, which only engines multiply.
    """
    if name not in ("auto", *COMPUTES):
        known = ", ".join(("auto", *COMPUTES))
        raise PetaliteError(f"unknown compute '{name}'{did_you_mean(name, COMPUTES)}; known: {known}")
    if name in ("auto", *_PLAIN):
        if name != "auto":
            return name
        if format in ("fp32", "bf16"):
            return format
        return "bf16" if device.type == "cpu" else "fp16"
    if reason := unavailable_compute(name, capability_of(device), device.type):
        raise PetaliteError(reason)
    others = "the CPU engine, or bf16" if device.type == "cpu" else "the fused engine, or fp16, bf16"
    raise PetaliteError(f"plain modules do not multiply in {name}; use {others} or fp32")
