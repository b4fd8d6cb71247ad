"""What the first kernel of a process waits for besides its own compilation, done while something else is.

    get_ready(device)        # returns at once; a thread initializes CUDA and Triton

Triton loads its compiler, hashes some hundred megabytes of itself, and where its cache is empty has its driver compiled by
a C compiler. That takes from half a second to two, little of it in Python.
"""

from __future__ import annotations

import threading
from contextlib import suppress

import torch

from petalite.engine.kernels.launching import compile_together, launched


def get_ready(device: torch.device) -> threading.Thread:
    """Make CUDA and Triton ready on a device, in a thread. What goes wrong there is left for the first kernel to say."""
    thread = threading.Thread(target=_compile_nothing, args=(device,), name="petalite-triton")
    thread.start()
    return thread


def _compile_nothing(device: torch.device) -> None:
    with suppress(Exception):
        import triton

        @triton.jit
        def nothing() -> None:
            pass

        compile_together([lambda: launched(nothing, (1,))()], device)
