"""How processes that read images are started: quickly where that is safe, safely elsewhere.

    with starting_workers():
        loader = iter(DataLoader(files, num_workers=usable_workers(None), multiprocessing_context=worker_context()))

Workers only read and decode: they hold no model and never touch an accelerator.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext

import torch


def available_cores() -> int:
    """Cores that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_workers(workers: int | None) -> int:
    """`workers`, or for None the available cores, at most 8."""
    return min(8, available_cores()) if workers is None else workers


def worker_context() -> BaseContext:
    """Fork (a few ms a worker), unless CUDA is in use in this process: its state does not survive a fork.

    Then, and where there is no fork, workers come from a clean server process that has imported what they need once
    (a few seconds the first time).
    """
    methods = multiprocessing.get_all_start_methods()
    if "fork" in methods and not torch.cuda.is_initialized():
        return multiprocessing.get_context("fork")
    if "forkserver" in methods:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["petalite.data", "torchvision.transforms.v2"])
        return context
    return multiprocessing.get_context("spawn")


@contextmanager
def starting_workers() -> Iterator[None]:
    """Without the warning that Python 3.12 gives on any fork beside threads.

    Torch's idle threads hold no lock that a worker takes: it reads files and computes with one thread of its own.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        yield
