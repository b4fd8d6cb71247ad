"""PyTorch's profiler as all measurements here use it: operators of the CPU, and kernels where there is a GPU.

with profiler_on(device) as profiler:
    forward()
"""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile


def activities_on(device: torch.device) -> list[ProfilerActivity]:
    """What is recorded of a pass on a device."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]


def profiler_on(device: torch.device) -> profile:
    """A profiler for one session."""
    # without acc_events, PyTorch 2.11 warns that a second session would lose what the first one saw
    return profile(activities=activities_on(device), acc_events=True)
