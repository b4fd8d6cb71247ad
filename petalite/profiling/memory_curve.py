"""Memory over time, while a checkpoint is loaded and runs: what PyTorch's allocator holds on a GPU, else the process.

    with Curve(device) as curve:
        classifier = load(…)
        curve.mark("loaded")
    curve.as_dict()      # {"kind": "rss", "points": [[seconds, bytes], …], "marks": [["loaded", 1.9]]}

A thread looks every few milliseconds. It stops before anything is timed.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

_EVERY_S = 0.01
_MOST_POINTS = 2_000
_STATM = Path("/proc/self/statm")


class Curve:
    """Samples of memory, from entering to leaving."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._points: list[tuple[float, int]] = []
        self._marks: list[tuple[str, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Curve:
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def mark(self, name: str) -> None:
        """Something came to its end now."""
        self._marks.append((name, time.perf_counter() - self._start))

    def as_dict(self) -> dict[str, Any]:
        """JSON values; `kind` as in the contract's `memory`. Of many points the largest of each stretch is kept."""
        step = -(-len(self._points) // _MOST_POINTS) or 1
        kept = [
            max(self._points[at : at + step], key=lambda point: point[1]) for at in range(0, len(self._points), step)
        ]
        return {
            "kind": "device" if self.device.type == "cuda" else "rss",
            "points": [list(point) for point in kept],
            "marks": [list(mark) for mark in self._marks],
        }

    def _watch(self) -> None:
        while True:
            ended = self._ended.wait(_EVERY_S if self._points else 0.0)
            self._points.append((time.perf_counter() - self._start, held_bytes(self.device)))
            if ended:
                return


def held_bytes(device: torch.device) -> int:
    """What is held now: on a GPU by the allocator's tensors, else the resident set (its peak where there is no /proc)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        from petalite.measure.memory import peak_rss_bytes

        return peak_rss_bytes()
