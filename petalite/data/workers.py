"""Work in other processes, in order, and none of it lost when one of them dies: how images are read.

    for job, parcel in in_order(read, jobs, workers=4):
        ...                          # parcel is None where `read(job)` ended the process that ran it

Workers only read and decode: they hold no model and never touch an accelerator. They are started quickly where that is
safe, and safely elsewhere; they end with the process that started them, also when that one is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing import connection
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from petalite.errors import PetaliteError

#: Jobs a worker that are under way or read but not yet asked for: what bounds the memory.
AHEAD = 2
Job = TypeVar("Job")
Done = TypeVar("Done")
_work: Callable[[Any], Any]  # in a worker: what it does with a job


def available_cores() -> int:
    """Cores that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_workers(workers: int | None) -> int:
    """`workers`, or for None the available cores, at most 8."""
    return min(8, available_cores()) if workers is None else workers


def in_order(work: Callable[[Job], Done], jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, Done | None]]:
    """Each job with `work(job)`, in order, computed in `workers` processes (at least 1), a few jobs ahead.

    None stands for the outcome of a job that ends the process that runs it, as a decoder's crash does: jobs that were
    lost with a process are run again, each in a process of its own, and those that end that one too are given up.
    `jobs` is taken as it is needed, in this process. What `work` raises is raised here.
    """
    source = iter(jobs)
    first = list(islice(source, workers * AHEAD))
    waiting = chain(first, source)
    under_way: deque[tuple[Job, Future[Done]]] = deque()
    pool: ProcessPoolExecutor | None = None
    try:
        while True:
            for job in islice(waiting, workers * AHEAD - len(under_way)):
                pool = pool or _pool(work, min(workers, len(first)))
                under_way.append((job, _submit(pool, job)))
            if not under_way:
                return
            job, future = under_way.popleft()
            try:
                done: Done | None = future.result()
            except BrokenProcessPool:
                if pool is not None:
                    pool.shutdown()
                pool = None  # the other jobs of the broken pool come here in their turn
                done = _alone(work, job)
            yield job, done
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _alone(work: Callable[[Job], Done], job: Job) -> Done | None:
    """The outcome in a process of its own, None where the process ends instead.

    Raises PetaliteError where not even a process without a job lasts: then no job is to blame.
    """
    with _pool(work, 1) as pool:
        try:
            _submit(pool, None, _idle).result()
        except BrokenProcessPool as error:
            why = "is there memory left, and leave to start processes?"
            raise PetaliteError(f"a process that reads images ended before it could begin; {why}") from error
        try:
            done: Done = _submit(pool, job).result()
            return done
        except BrokenProcessPool:
            return None


def _pool(work: Callable[[Job], Any], workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=worker_context(), initializer=_begin, initargs=(work,))


def _submit(pool: ProcessPoolExecutor, job: Any, call: Callable[[Any], Any] | None = None) -> Future[Any]:
    """The job's future; one that has failed already where the pool was found broken."""
    try:
        with starting_workers():
            return pool.submit(call or _run, job)
    except BrokenProcessPool as error:
        failed: Future[Any] = Future()
        failed.set_exception(error)
        return failed


def _begin(work: Callable[[Any], Any]) -> None:
    """In a worker, before its first job."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it is interrupted too, and ends it
    if torch := sys.modules.get("torch"):  # no work that does without it waits for its import
        torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that is killed cannot end its workers, and a worker would wait for jobs forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _run(job: Any) -> Any:
    return _work(job)


def _idle(_: None) -> None:
    """Nothing: what shows that a process lasts."""


def worker_context() -> BaseContext:
    """Fork (a few ms a worker), unless CUDA is in use in this process: its state does not survive a fork.

    Then, and where there is no fork, workers come from a clean server process that has imported what they need once
    (a few seconds the first time).
    """
    methods = multiprocessing.get_all_start_methods()
    torch = sys.modules.get("torch")
    if "fork" in methods and not (torch and torch.cuda.is_initialized()):
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
