"""How much memory a process has needed at most: on the GPU for CUDA, of the whole process for a CPU.

    reset_peak(device)
    classifier.forward(batch)
    peak(device)      # {"kind": "device", "peak_bytes": 1_400_000_000, "reserved_bytes": 1_500_000_000}

On CUDA `peak_bytes` is what PyTorch's tensors took (`max_memory_allocated`); `reserved_bytes` is what its allocator
held for them, and the CUDA context (some hundred MB, the same for every variant) comes on top. On a CPU `peak_bytes`
is the largest resident set of the process: Python, PyTorch's libraries and the checkpoint's mapped file included.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak(device: torch.device) -> dict[str, Any]:
    """`kind` (device or rss), `peak_bytes` since the last reset, and on CUDA `reserved_bytes`."""
    if device.type == "cuda":
        return {
            "kind": "device",
            "peak_bytes": torch.cuda.max_memory_allocated(device),
            "reserved_bytes": torch.cuda.max_memory_reserved(device),
        }
    return {"kind": "rss", "peak_bytes": peak_rss_bytes()}


def reset_peak(device: torch.device) -> bool:
    """Start a new peak from what is held now. False where the system does not allow it: then the peak is the process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR_REFS.write_text("5")  # proc(5): resets VmHWM to the current resident set
    except OSError:
        return False
    return True


def peak_rss_bytes() -> int:
    """The largest resident set of this process, since its start or the last `reset_peak`."""
    try:
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024  # bytes on macOS, KiB elsewhere
