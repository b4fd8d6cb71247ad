"""What runs on this machine and, where something does not, why and what to do; text made for pasting into an issue.

    print(render(diagnose()))

Each format, attention backend and precision is tried on a tiny input, on each device: a package that is installed but
broken is found here rather than in the middle of a study. Paths and user names are taken out of all text.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petalite.attention import BACKENDS, Backend
from petalite.engine import resolve_compute
from petalite.errors import PetaliteError
from petalite.formats import FORMATS, Format
from petalite.formats.plain import DTYPES

PACKAGES = (
    *("petalite", "torch", "torchvision", "timm", "peft", "bitsandbytes", "safetensors", "huggingface-hub", "numpy"),
    *("scipy", "scikit-learn", "pillow", "matplotlib", "transformers", "accelerate", "flash-attn", "kagglehub"),
)
#: Processor features that decide how fast a precision is, as /proc/cpuinfo spells them (x86, then ARM).
CPU_FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve"),
)
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
#: The folders of an absolute path; not those of a URL, nor "fp16/bf16".
_FOLDERS = re.compile(r"(?<![\w.:/\\])(?:[A-Za-z]:)?(?:[\\/][^\s\\/:'\",;()]+)+[\\/](?=[^\s\\/])")


def diagnose(checkpoint: Path | None = None) -> dict[str, Any]:
    """Versions, hardware, and what runs here, as JSON values; with `checkpoint`, the outcome of verifying it too.

    Under `runs`, for each device: `formats`, `attention` (by precision) and `compute`, each a name and either None
    (it runs) or the reason why it does not. `advice` lists what to do, a line each.
    """
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    report: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "system": {"os": _os_name(), "machine": platform.machine(), "compiler": _compiler()},
        "cpu": _cpu(),
        "gpus": [_gpu(device) for device in devices[1:]],
        "runs": {str(device): _what_runs(device) for device in devices},
    }
    report["advice"] = _advice(report)
    if checkpoint is not None:
        from petalite.verify import verify

        report["checkpoint"] = verify(checkpoint).as_dict()
    private: dict[str, Any] = _without_private(report)
    return private


def render(report: dict[str, Any]) -> str:
    """The report as plain text, ending in a newline."""
    versions, cpu = report["versions"], report["cpu"]
    installed = [f"{name} {version}" for name, version in versions.items() if version]
    absent = [name for name, version in versions.items() if not version]
    lines = [
        "versions   " + ", ".join(installed),
        *(["absent     " + ", ".join(absent)] if absent else []),
        "system     " + ", ".join(str(value) for value in report["system"].values() if value),
        f"cpu        {cpu['name']}, {cpu['cores']} cores, {cpu['memory_gib']} GiB, "
        f"torch uses {cpu['torch_capability']} on {cpu['torch_threads']} threads",
        *(["           " + " ".join(cpu["flags"])] if cpu["flags"] else []),
    ]
    for gpu in report["gpus"]:
        lines.append(
            f"{gpu['device']:<11}{gpu['name']}, compute capability {gpu['compute_capability']}, "
            f"{gpu['memory_gib']} GiB, CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}"
        )
    if not report["gpus"]:
        lines.append("gpu        none that torch can use")
    for device, groups in report["runs"].items():
        lines += ["", f"on {device}"]
        lines += _runs_lines("compute", [(name, {None: reason}) for name, reason in groups["compute"].items()])
        lines += _runs_lines("formats", [(name, {None: reason}) for name, reason in groups["formats"].items()])
        lines += _runs_lines("attention", list(groups["attention"].items()))
    if report["advice"]:
        lines += ["", "what to do", *(f"  - {line}" for line in report["advice"])]
    if "checkpoint" in report:
        lines += [
            "",
            f"checkpoint {report['checkpoint']['path']}",
            *(f"  {line}" for line in report["checkpoint"]["lines"]),
        ]
    return "\n".join(lines) + "\n"


def _runs_lines(group: str, entries: list[tuple[str, dict[str | None, str | None]]]) -> list[str]:
    """What of `group` runs, in one line, and a line for each reason why something does not.

    An entry is a name and the reason by precision (None: it runs); a single key None where precision plays no part.
    """
    runs: list[str] = []
    reasons: list[str] = []
    for name, by_precision in entries:
        for reason in dict.fromkeys(by_precision.values()):
            precisions = [precision for precision, found in by_precision.items() if found == reason and precision]
            label = name if len(precisions) == len(by_precision) else " ".join([name, *precisions])
            runs += [label] if reason is None else []
            reasons += [f"  {'':<10} not:  {label}: {reason}"] if reason is not None else []
    return [f"  {group:<10} runs: {', '.join(runs) or 'none'}", *reasons]


# what the machine is


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


# what runs on it


def _what_runs(device: torch.device) -> dict[str, Any]:
    compute = {name: _trial(partial(_try_compute, device, dtype)) for name, dtype in DTYPES.items()}
    attention = {
        backend.name: {
            name: compute[name]
            or backend.unavailable(device, dtype)
            or _trial(partial(_try_attention, backend, device, dtype))
            for name, dtype in DTYPES.items()
        }
        for backend in BACKENDS.values()
    }
    formats = {
        format.name: format.missing(device) or _trial(partial(_try_format, format, device))
        for format in FORMATS.values()
    }
    return {"compute": compute, "formats": formats, "attention": attention}


def _trial(attempt: Callable[[], None]) -> str | None:
    """None when `attempt` works, else a line that says how it failed."""
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            attempt()
    except PetaliteError as error:
        return str(error)
    except Exception as error:  # whatever a broken package raises is what the reader needs to see
        lines = str(error).strip().splitlines() or [""]
        return f"a small trial failed: {type(error).__name__}: {lines[0][:200]}"
    return None


def _try_compute(device: torch.device, dtype: torch.dtype) -> None:
    nn.Linear(64, 64, device=device, dtype=dtype)(torch.zeros(2, 64, device=device, dtype=dtype)).sum().item()


def _try_attention(backend: Backend, device: torch.device, dtype: torch.dtype) -> None:
    query = torch.zeros(1, 2, 17, 64, device=device, dtype=dtype)
    backend.attend(query, query, query).sum().item()


def _try_format(format: Format, device: torch.device) -> None:
    """Pack, build and multiply, in the precision that a checkpoint of that format would run in here."""
    dtype = DTYPES[resolve_compute("auto", format.name, device)]
    weight = torch.linspace(-1, 1, 128 * 128).view(128, 128)
    layer = format.build(format.pack(weight), None, dtype, device)
    out = layer(torch.ones(2, 128, device=device, dtype=dtype))
    if not torch.isfinite(out).all():
        raise PetaliteError(
            f"{format.name} multiplied to infinity or NaN; report this with the text of petalite doctor"
        )


def _advice(report: dict[str, Any]) -> list[str]:
    advice = []
    driver = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()
    if driver and not report["gpus"]:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        advice.append(
            f"an NVIDIA driver is here, but torch (built {built}) sees no GPU: install the torch wheel that fits it"
        )
    for gpu in report["gpus"]:
        if tuple(map(int, gpu["compute_capability"].split("."))) < (8, 0):
            advice.append(f"{gpu['device']} is older than Ampere: use --compute fp16 and --attention efficient or sdpa")
    flags = set(report["cpu"]["flags"])
    if flags and not flags & BF16_FLAGS and not report["gpus"]:
        advice.append("this processor has no BF16 instructions: --compute fp32 is likely faster than bf16")
    if report["system"]["compiler"] is None:
        advice.append("no C compiler was found: torch.compile cannot be used")
    return advice


# what must not be pasted


def _without_private(value: Any) -> Any:
    """`value` with absolute paths shortened to their last part and the user's name taken out, in every string."""
    if isinstance(value, dict):
        return {key: _without_private(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_private(item) for item in value]
    if not isinstance(value, str):
        return value
    text = _FOLDERS.sub("…/", value)
    name = _user_name()
    return re.sub(rf"\b{re.escape(name)}\b", "USER", text) if name and name != "root" else text


def _user_name() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without an entry for its user
        return None
