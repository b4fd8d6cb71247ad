"""Timing a forward pass: one at a time for latency, back to back for throughput.

    warm_up(forward, wait)
    samples_ms = time_forwards(forward, wait, samples=30, seconds=3.0)
    images_per_s = count_forwards(forward, wait, seconds=3.0) * batch_size

What is timed is the host's clock around `forward` and `wait`, with the input already on the device: the launch of
every kernel and the end of the last one, but neither decoding nor copying an image. `wait` blocks until the device is
done (`torch.cuda.synchronize`; nothing on a CPU). A latency sample is one forward pass with nothing else in flight;
for throughput the passes are queued and only the end of a group is waited for, as a busy server does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from petalite.measure.statistics import percentiles

Call = Callable[[], object]
#: Passes queued between two waits last about this long, so that waiting costs nothing and the queue stays short.
_GROUP_SECONDS = 0.2


def nothing() -> None:
    """For a device that has nothing to wait for, and for a caller who watches no progress."""


def warm_up(forward: Call, wait: Call, *, passes: int = 3, seconds: float = 0.3) -> None:
    """Run until both `passes` and `seconds` are reached: kernels chosen, memory taken, clocks and caches up."""
    end = time.perf_counter() + seconds
    while passes > 0 or time.perf_counter() < end:
        forward()
        wait()
        passes -= 1


def time_forwards(forward: Call, wait: Call, *, samples: int, seconds: float, progress: Call = nothing) -> list[float]:
    """Milliseconds of single passes: at least `samples` of them and at least `seconds` in all.

    Two passes before the first are not counted: they bring back the caches that the process before took over.
    `progress` is called between passes, outside the clock.
    """
    warm_up(forward, wait, passes=2, seconds=0.0)
    taken_ms: list[float] = []
    began = time.perf_counter()
    while len(taken_ms) < samples or time.perf_counter() - began < seconds:
        wait()
        start = time.perf_counter()
        forward()
        wait()
        taken_ms.append((time.perf_counter() - start) * 1e3)
        progress()
    return taken_ms


def count_forwards(forward: Call, wait: Call, *, seconds: float, progress: Call = nothing) -> float:
    """Passes a second, queued back to back for at least `seconds` and three passes."""
    wait()
    start = time.perf_counter()
    forward()
    wait()
    once = max(time.perf_counter() - start, 1e-6)
    group = max(1, round(_GROUP_SECONDS / once))
    done = 0
    start = time.perf_counter()
    while done < 3 or time.perf_counter() - start < seconds:
        for _ in range(group):
            forward()
        wait()
        done += group
        progress()
    return done / (time.perf_counter() - start)


def latency_entry(batch_size: int, samples_ms: Sequence[float]) -> dict[str, Any]:
    """The contract's `latency` block."""
    values = {f"{name}_ms": value for name, value in percentiles(samples_ms).items()}
    return {"batch_size": batch_size, **values, "samples": len(samples_ms)}
