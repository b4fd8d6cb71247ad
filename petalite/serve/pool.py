"""The workers as the front process sees them: who is ready, who has what, and what happens when one dies.

    pool = Pool(orders)
    await pool.start(folders)                       # raises PetaliteError where a checkpoint is refused
    answer = await pool.ask(head, body, deadline)   # raises Refusal
    await pool.reload(folders)                      # new workers beside the old ones, then instead of them

A request waits here until a worker has room, so that a worker that is killed takes few with it. Those are refused, not
tried again: one of them may be what killed it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any

from petalite.errors import PetaliteError
from petalite.serve.logs import event
from petalite.serve.process import WorkerProcess
from petalite.serve.refusal import Refusal, too_late
from petalite.serve.wire import Answer, Orders, ask

#: A worker holds at most so many batches: one that is computed, one that is decoded.
_WINDOW_BATCHES = 2
#: A worker that keeps a request for so long after its deadline hangs, and is replaced.
HUNG_S = 30.0
_LONGEST_BACKOFF_S = 30.0


class _Waiting:
    """A request between its acceptance and its answer."""

    __slots__ = ("body", "deadline", "future", "head", "id", "sent", "since")

    def __init__(self, id: int, head: Mapping[str, Any], body: bytes, deadline: float) -> None:
        self.id, self.head, self.body, self.deadline = id, head, body, deadline
        self.since = self.sent = time.monotonic()
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def expire(self) -> None:
        """Tell who waits that the deadline has passed."""
        if not self.future.done():
            self.future.set_exception(too_late())


class Pool:
    """Workers, and the requests that wait for one."""

    def __init__(self, orders: Orders, workers: int) -> None:
        self._orders, self._count = orders, workers
        self._window = _WINDOW_BATCHES * orders.max_batch
        self._workers: list[WorkerProcess] = []
        self._waiting: deque[_Waiting] = deque()
        self._held: dict[WorkerProcess, dict[int, _Waiting]] = {}
        self._processes: set[WorkerProcess] = set()  # also those that serve no more
        self._ids = itertools.count(1)
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._closed = False
        self.restarts = 0
        self.models: dict[str, dict[str, Any]] = {}

    @property
    def ready(self) -> int:
        """Workers that take requests."""
        return len(self._workers)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that take requests."""
        return [worker.pid for worker in self._workers]

    async def start(self, folders: Mapping[str, list[str]]) -> None:
        """Start every worker. Raises PetaliteError where one cannot load its checkpoints; then none is left."""
        async with self._changing:
            self._take_over(*await self._generation(folders))
        self._later(self._watch())

    async def reload(self, folders: Mapping[str, list[str]]) -> None:
        """Load other checkpoints beside the ones that serve, then serve those. Raises PetaliteError; then nothing changes."""
        async with self._changing:
            old = self._workers
            self._take_over(*await self._generation(folders))
        for worker in old:
            self._retire(worker)

    async def ask(self, head: Mapping[str, Any], body: bytes, deadline: float) -> tuple[Answer, float]:
        """A worker's answer, and the seconds that the request waited for a worker. Raises Refusal."""
        waiting = _Waiting(next(self._ids), head, body, deadline)
        timer = asyncio.get_running_loop().call_later(max(0.0, deadline - waiting.since), waiting.expire)
        try:
            self._waiting.append(waiting)
            self._dispatch()
            answer = await waiting.future
            return answer, waiting.sent - waiting.since
        finally:
            timer.cancel()

    async def close(self) -> None:
        """End the workers, which answer what they hold first."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(worker.end(timeout_s=5.0) for worker in list(self._held)))
        await asyncio.gather(*(worker.gone.wait() for worker in self._processes))

    # starting

    async def _generation(
        self, folders: Mapping[str, list[str]]
    ) -> tuple[Orders, list[WorkerProcess], dict[str, dict[str, Any]]]:
        """Workers with these checkpoints, ready; the first alone, since it finds out whether they are any good."""
        orders = replace(self._orders, models=dict(folders))
        started: list[WorkerProcess] = []
        try:
            first = await self._spawn(orders)
            started.append(first)
            facts = await first.ready()
            others = [await self._spawn(orders) for _ in range(self._count - 1)]
            started += others
            await asyncio.gather(*(worker.ready() for worker in others))
        except BaseException:
            for worker in started:
                self._held.pop(worker, None)
                worker.kill()
            raise
        return orders, started, facts

    async def _spawn(self, orders: Orders) -> WorkerProcess:
        worker = await WorkerProcess.start(orders, self._answered, self._lost)
        self._held[worker] = {}
        self._processes = {worker, *(other for other in self._processes if not other.gone.is_set())}
        return worker

    def _take_over(self, orders: Orders, workers: list[WorkerProcess], models: dict[str, dict[str, Any]]) -> None:
        if dead := [worker for worker in workers if not worker.alive]:
            workers = [worker for worker in workers if worker.alive]
            for _ in dead:
                self._later(self._replace())
        self._orders, self._workers, self.models = orders, workers, models
        self._dispatch()

    def _retire(self, worker: WorkerProcess) -> None:
        """Let a worker answer what it holds and end."""

        async def retire() -> None:
            await worker.end(timeout_s=HUNG_S)

        self._later(retire())

    async def _replace(self) -> None:
        """Start one worker in the place of one that died, later each time that this fails."""
        while not self._closed:
            if self._failures:
                await asyncio.sleep(min(2.0 ** (self._failures - 1), _LONGEST_BACKOFF_S))
            async with self._changing:
                if len(self._workers) >= self._count:
                    return
                worker = await self._spawn(self._orders)
                try:
                    await worker.ready()
                except PetaliteError as error:
                    self._failures += 1
                    self._held.pop(worker, None)
                    worker.kill()
                    event("worker_failed", level="error", error=str(error), failures=self._failures)
                    continue
                self._failures = 0
                self.restarts += 1
                self._workers.append(worker)
                event("worker_replaced", pid=worker.pid)
                self._dispatch()
                return

    # running

    def _dispatch(self) -> None:
        """Hand what waits to the workers that have room, the emptiest first."""
        while self._waiting and self._workers:
            worker = min(self._workers, key=lambda candidate: len(self._held[candidate]))
            held = self._held[worker]
            if len(held) >= self._window:
                return
            waiting = self._waiting.popleft()
            if waiting.future.done():  # its deadline passed here
                continue
            held[waiting.id] = waiting
            waiting.sent = time.monotonic()
            worker.send(ask(waiting.id, waiting.deadline, waiting.head, waiting.body))
            waiting.body = b""

    def _answered(self, worker: WorkerProcess, answer: Answer) -> None:
        waiting = self._held.get(worker, {}).pop(answer.id, None)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_result(answer)
        self._dispatch()

    def _lost(self, worker: WorkerProcess) -> None:
        """A worker's socket has closed: refuse what it held and, if it served, start another."""
        held = self._held.pop(worker, {})
        for waiting in held.values():
            if not waiting.future.done():
                message = "the worker that held this request ended; another takes its place, try again"
                waiting.future.set_exception(Refusal(503, "worker_lost", message, retry_after_s=1))
        if worker in self._workers:
            self._workers.remove(worker)
            if not self._closed:
                event("worker_lost", level="error", pid=worker.pid, requests=len(held))
                self._later(self._replace())

    async def _watch(self) -> None:
        """Kill a worker that hangs: it keeps a request long after its deadline."""
        while True:
            await asyncio.sleep(1.0)
            for worker, held in list(self._held.items()):
                oldest = min((waiting.deadline for waiting in held.values()), default=None)
                if oldest is not None and time.monotonic() > oldest + HUNG_S:
                    event("worker_hangs", level="error", pid=worker.pid, requests=len(held))
                    worker.kill()

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
