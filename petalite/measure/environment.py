"""What a measurement was made on: versions, processor, GPU; kept beside every result.

    environment()["cpu"]       # {"model": "AMD EPYC 9654", "cores": 2, "flags": ["avx512f", "avx512_vnni", …]}

Versions are read from the installed packages' metadata, so no package is imported to learn them.
"""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from petalite.engine.threads import usable_threads

PACKAGES = ("torch", "torchvision", "timm", "bitsandbytes", "peft", "transformers", "numpy")
#: Processor features that decide which precision is fast: x86 (AVX-512, AMX), then Arm.
FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve"),
)


def environment() -> dict[str, Any]:
    """Versions, system, CPU and GPUs as JSON values. `gpus` is empty where CUDA cannot be used."""
    import petalite

    return {
        # run from a source tree that was not installed, the package itself knows its version
        "petalite": _version("petalite") or getattr(petalite, "__version__", None),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(terse=True),
        "cpu": cpu(),
        "gpus": gpus(),
    }


def hardware(environment: dict[str, Any]) -> str:
    """One line that names the machine: `NVIDIA H200` or `AMD EPYC, 2 cores`."""
    names = [gpu["name"] for gpu in environment["gpus"]]
    if names:
        return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"
    return f"{environment['cpu']['model']}, {environment['cpu']['cores']} cores"


def cpu() -> dict[str, Any]:
    """`model`, `cores` that this process may use, and `flags` that matter here."""
    fields = _cpuinfo()
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": usable_threads(),
        "flags": [flag for flag in FLAGS if flag in present],
    }


def gpus() -> list[dict[str, Any]]:
    """Each CUDA GPU: `name`, compute `capability`, `memory_bytes`, and the versions of `driver` and `cuda`."""
    import torch

    if not torch.cuda.is_available():
        return []
    driver = _driver()
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
                "driver": driver,
                "cuda": torch.version.cuda,
            }
        )
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.split("\n")[0].strip() or None
