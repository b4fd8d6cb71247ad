"""Passes under PyTorch's profiler, alone or in turn with undisturbed ones.

    trace = profiled(forward, device, passes=20)
    trace, undisturbed_us = in_turn(forward, torch.device("cpu"), groups=4)

The first passes of a session take up to a tenth longer, while the profiler takes memory for its events; those do not
count. On a CPU the profiler is switched on and off every few passes of one session, so that a machine whose speed
changes within seconds, as that of a shared one does, slows both alike. On a GPU a session has passes of one sort.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import profile as torch_profile
from torch.profiler import record_function

from petalite.measure.ceilings import wait_for
from petalite.measure.latency import time_forwards, warm_up
from petalite.measure.profiler import activities_on, profiler_on
from petalite.profiling.trace import PASS, Trace, read_trace

#: In a row with the profiler switched on, or off. The first pays for the switching (1 % of 12 ms) and does not count.
GROUP = 3
#: Passes of a session before those that count; fewer of long ones, in which the beginning is little.
_SETTLING, _SETTLING_S = 5, 0.1
_SETTLES = "petalite:settling"


def profiled(
    forward: Callable[[], object],
    device: torch.device,
    passes: int,
    once_s: float = _SETTLING_S,
    kept: Path | None = None,
) -> Trace:
    """Passes under the profiler, each annotated as one, behind some that do not count.

    once_s: about the time of one. kept: where the trace stays as a file.
    """
    return _read(_session(forward, device, passes, once_s), kept)


def in_turn(
    forward: Callable[[], object], device: torch.device, groups: int, once_s: float = _SETTLING_S
) -> tuple[Trace, list[float]]:
    """As many groups of passes with the profiler as without it: the trace, and the microseconds of those without it."""
    if device.type == "cuda":
        passes, wait = groups * (GROUP - 1), wait_for(device)
        # reading a trace leaves the GPU idle for so long that its clock falls
        warm_up(forward, wait, passes=_SETTLING, seconds=_SETTLING_S)
        session = _session(forward, device, passes, once_s)
        warm_up(forward, wait, passes=_SETTLING, seconds=_SETTLING_S)
        taken_ms = time_forwards(forward, wait, samples=passes, seconds=0.0)
        return _read(session, None), [1e3 * ms for ms in taken_ms]
    undisturbed_us: list[float] = []
    activities = activities_on(device)
    with profiler_on(device) as profiler:
        for _ in range(_settling(once_s)):
            forward()
        for _ in range(groups):
            profiler.toggle_collection_dynamic(False, activities)
            for number in range(GROUP):
                start = time.perf_counter()
                forward()
                if number:
                    undisturbed_us.append(1e6 * (time.perf_counter() - start))
            profiler.toggle_collection_dynamic(True, activities)
            for number in range(GROUP):
                with record_function(f"{PASS}{number}" if number else _SETTLES):
                    forward()
    return _read(profiler, None), undisturbed_us


def _session(forward: Callable[[], object], device: torch.device, passes: int, once_s: float) -> torch_profile:
    wait = wait_for(device)
    wait()
    profiler = profiler_on(device)
    with profiler:
        for number in range(-_settling(once_s), passes):
            with record_function(f"{PASS}{number}" if number >= 0 else _SETTLES):
                forward()
                wait()
    return profiler


def _settling(once_s: float) -> int:
    return max(1, min(_SETTLING, math.ceil(_SETTLING_S / once_s)))


def _read(profiler: torch_profile, kept: Path | None) -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        path = kept or Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return read_trace(path)
