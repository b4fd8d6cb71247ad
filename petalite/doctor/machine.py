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
from typing import Any

import torch

from petalite.measure.environment import cpu

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
    found = cpu()
    return {
        "name": found["model"],
        "cores": found["cores"],
        "memory_gib": _memory_gib(),
        "flags": found["flags"],
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
    }


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
