"""What runs on this machine and, where something does not, why and what to do; text made for pasting into an issue.

    print(render(diagnose()))

Paths and user names are taken out of all text, also out of what other packages' errors say.
"""

from __future__ import annotations

import getpass
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from petalite.doctor.catalogue import listing
from petalite.doctor.machine import describe, devices
from petalite.doctor.text import render
from petalite.doctor.trials import attention_here, compute_here, engines_here, formats_here

__all__ = ["diagnose", "listing", "render"]

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
#: The folders of an absolute path; not those of a URL, nor "fp16/bf16".
_FOLDERS = re.compile(r"(?<![\w.:/\\])(?:[A-Za-z]:)?(?:[\\/][^\s\\/:'\",;()]+)+[\\/](?=[^\s\\/])")


def diagnose(checkpoint: Path | None = None) -> dict[str, Any]:
    """Versions, hardware, and what runs here, as JSON values; with `checkpoint`, whether it can be deployed here.

    Under `runs`, for each device: `engines`, `compute`, `formats` and `attention` (by precision), each a name and either None
    (it runs) or the reason why it does not. `advice` lists what to do, a line each.
    """
    report = describe()
    report["runs"] = {
        str(device): {
            "engines": engines_here(device),
            "compute": compute_here(device),
            "formats": formats_here(device),
            "attention": attention_here(device),
        }
        for device in devices()
    }
    report["advice"] = _advice(report)
    if checkpoint is not None:
        from petalite.doctor.deployment import deployment
        from petalite.verification import verify

        found = verify(checkpoint)
        checks = deployment(checkpoint, found)
        ok = all(check["ok"] is not False for check in checks)
        report["checkpoint"] = {**found.as_dict(), "ok": ok, "deployment": checks}
    private: dict[str, Any] = _without_private(report)
    return private


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
