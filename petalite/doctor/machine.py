"""What this machine is: versions of what Petalite stands on, the system, the processor, the GPUs.

    describe()["gpus"]      # [{"device": "cuda:0", "name": "NVIDIA H200", "compute_capability": "9.0", …}]
    describe()["cpu"]       # {"name": …, "cores": 2, "flags": ["avx512_vnni", …], …}

Nothing here names the machine or its user.
"""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    *("petalite", "torch", "torchvision", "timm", "peft", "bitsandbytes", "safetensors", "huggingface-hub", "numpy"),
    *(
        "scipy",
        "scikit-learn",
        "pillow",
        "matplotlib",
        "openvino",
        "transformers",
        "accelerate",
        "flash-attn",
        "kagglehub",
    ),
)
#: Processor features that decide how fast a precision is, as /proc/cpuinfo spells them (x86, then ARM).
CPU_FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve"),
)


def devices() -> list[torch.device]:
    """The CPU, then every GPU that torch can use."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(count))]


def describe() -> dict[str, Any]:
    """`versions` (None: not installed), `system`, `cpu` and `gpus`, as JSON values; sizes in GiB."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "system": {"os": _os_name(), "machine": platform.machine(), "compiler": _compiler()},
        "cpu": _cpu(),
        "gpus": [_gpu(device) for device in devices()[1:]],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _compiler() -> str | None:
    """The C compiler that torch.compile would find, by name."""
    return next((name for name in ("cc", "gcc", "clang", "cl") if shutil.which(name)), None)


def _cpu() -> dict[str, Any]:
    fields = _cpuinfo()
    found = set((fields.get("flags") or fields.get("features") or "").split())
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "flags": [flag for flag in CPU_FLAGS if flag in found],
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry in /proc/cpuinfo, keys in lower case; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    rows = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in rows}


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": str(device),
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
