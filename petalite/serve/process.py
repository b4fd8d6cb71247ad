"""One worker process, from the front process's side: started, spoken to, ended.

worker = await WorkerProcess.start(orders, answered, lost)
facts = await worker.ready()                    # raises PetaliteError with the worker's own reason
worker.send(frame)                              # answers come through `answered(worker, answer)`
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

from petalite.errors import PetaliteError
from petalite.serve.logs import event
from petalite.serve.wire import CONTROL, Answer, Answers, Orders

_MODULE = "petalite.serve.worker"
#: glibc's allocator keeps what big images took, unless it is told to give back blocks of the size that Pillow asks for.
_MEMORY = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "16000000",
    "MALLOC_TRIM_THRESHOLD_": "67108864",
}


class WorkerProcess(asyncio.Protocol):
    """A worker and the socket to it.

    answered: called with each answer. lost: called once when the socket closes, for whatever reason.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        answered: Callable[[WorkerProcess, Answer], None],
        lost: Callable[[WorkerProcess], None],
    ) -> None:
        self._process, self._answered, self._lost = process, answered, lost
        self._answers = Answers()
        self._transport: asyncio.Transport
        self._ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self.gone = asyncio.Event()  # the process has ended and was collected

    @classmethod
    async def start(
        cls,
        orders: Orders,
        answered: Callable[[WorkerProcess, Answer], None],
        lost: Callable[[WorkerProcess], None],
    ) -> WorkerProcess:
        """Start a process and connect to it."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", _MODULE, str(theirs.fileno()), json.dumps(asdict(orders))]
            # what other packages print must not end up among this process's results
            process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__.fileno() if sys.__stderr__ else None,
                env={**os.environ, **_MEMORY, "OMP_NUM_THREADS": str(orders.threads)},
            )
        _, worker = await asyncio.get_running_loop().create_connection(lambda: cls(process, answered, lost), sock=ours)
        return worker

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its socket is open."""
        return not self._ended.is_set()

    async def ready(self) -> dict[str, Any]:
        """What it loaded, once it is ready. Raises PetaliteError with its reason where it cannot be."""
        return await asyncio.shield(self._ready)

    def send(self, frame: bytes) -> None:
        """Send the frame of a request."""
        self._transport.write(frame)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    async def end(self, timeout_s: float) -> None:
        """Let it answer what it holds and end; kill it when that takes too long."""
        if self.alive:
            self._transport.write_eof()
        try:
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        except TimeoutError:
            self.kill()
            await self._ended.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As in asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """As in asyncio.Protocol."""
        for answer in self._answers.feed(data):
            if answer.id != CONTROL:
                self._answered(self, answer)
            elif not self._ready.done():
                value = json.loads(answer.body)
                if answer.status == 200:
                    self._ready.set_result(value)
                else:
                    self._ready.set_exception(PetaliteError(value))

    def connection_lost(self, exc: Exception | None) -> None:
        """As in asyncio.Protocol."""
        self._ended.set()
        self._lost(self)
        self._collecting = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        """The socket closes a moment before the process ends: take its exit code, and tell who waits for it."""
        code = await asyncio.to_thread(self._process.wait)
        if code not in (0, 1):
            event("worker_ended", level="error", pid=self.pid, exit_code=code)
        if not self._ready.done():
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            self._ready.set_exception(PetaliteError(f"a worker {how} while it was loading"))
        self._ready.exception()  # nobody may be waiting for it
        self.gone.set()
