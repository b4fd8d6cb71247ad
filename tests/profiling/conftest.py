"""Traces made by hand, as PyTorch writes them, and small classifiers to take apart."""

from __future__ import annotations

from typing import Any

import tests.engine.kernels.conftest  # noqa: F401  kernels are interpreted where there is no GPU
from petalite.profiling.trace import LAYER, PASS


def event(
    category: str, name: str, start: float, us: float, thread: int = 1, correlation: int | None = None
) -> dict[str, Any]:
    """A complete event of a Chrome trace."""
    arguments = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": us, "tid": thread, "args": arguments}


def a_pass(start: float, us: float) -> dict[str, Any]:
    """The annotation around a pass."""
    return event("user_annotation", f"{PASS}1", start, us)


def layer(name: str, start: float, us: float) -> dict[str, Any]:
    """The annotation around a layer."""
    return event("user_annotation", f"{LAYER}{name}", start, us)


def operator(name: str, start: float, us: float) -> dict[str, Any]:
    """An operator on the CPU."""
    return event("cpu_op", name, start, us)


def launched(name: str, at: float, start: float, us: float, correlation: int) -> list[dict[str, Any]]:
    """A kernel and what launched it."""
    return [
        event("cuda_runtime", "cudaLaunchKernel", at, 1, correlation=correlation),
        event("kernel", name, start, us, thread=7, correlation=correlation),
    ]
