"""From start to stop: the socket, the signals, and an end that loses nothing.

SIGTERM or SIGINT: readiness goes, every connection ends with its answer, then the listener closes, the rest is answered, and
the workers end. A second one ends at once. SIGHUP: the checkpoint folders are read again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import uvicorn

from petalite.errors import PetaliteError
from petalite.serve.app import build_app
from petalite.serve.guard import Guard, GuardedProtocol
from petalite.serve.logs import bridge, event
from petalite.serve.metrics import Metrics
from petalite.serve.page import Page
from petalite.serve.pool import Pool
from petalite.serve.service import Service
from petalite.serve.settings import Settings
from petalite.serve.snapshot import Copies
from petalite.serve.wire import Orders

#: After SIGTERM new requests are answered for so long: clients and balancers that do not know yet lose none.
LAME_DUCK_S = 1.0
_LAST_READ_S = 0.2

Started = Callable[[dict[str, Any]], None]


class _Server(uvicorn.Server):
    """uvicorn's server, its signals left to `_signals`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener first: a connection that it accepted a moment ago has sent a request that is not read yet."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(_LAST_READ_S)
        await super().shutdown(sockets)


def run(settings: Settings, started: Started | None) -> None:
    """Serve until a signal. Raises PetaliteError for a checkpoint or an address that cannot be served."""
    bridge()
    _allow_connections()
    sock = listen(settings.host, settings.port)
    copies = Copies(settings.models)
    guard = Guard(request_s=settings.deadline_s + 5)
    config = uvicorn.Config(
        app="",
        http=partial(GuardedProtocol, guard=guard),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(guard.idle_s),
        timeout_graceful_shutdown=int(settings.deadline_s) + 5,
    )
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(settings, config, guard, sock, copies, started))
    finally:
        copies.close()
        sock.close()


async def _serve(
    settings: Settings,
    config: uvicorn.Config,
    guard: Guard,
    sock: socket.socket,
    copies: Copies,
    started: Started | None,
) -> None:
    pool = Pool(orders(settings), settings.worker_count)
    service = Service(settings, pool, Metrics(), partial(copies.hand_to, pool.reload))
    config.app = build_app(service, Page.read(settings.samples))
    server = _Server(config)
    stop = asyncio.Event()
    _signals(server, service, stop)
    url = _url(sock)
    event("start", url=url, pid=os.getpid(), models={name: str(path) for name, path in settings.models.items()})
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    starting = asyncio.create_task(copies.hand_to(pool.start))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            event("ready", url=url, workers=pool.pids)
            if started is not None:
                started({"url": url, "models": list(service.models)})
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            service.draining = guard.draining = True
            event("draining", open=service.open)
            await asyncio.sleep(LAME_DUCK_S)
    finally:
        server.should_exit = True
        starting.cancel()
        stopping.cancel()
        await asyncio.gather(serving, starting, return_exceptions=True)
        await pool.close()
        event("stopped", accepted=service.accepted, answered=service.answered)


def _signals(server: _Server, service: Service, stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def end() -> None:
        if stop.is_set():
            server.force_exit = True
        stop.set()

    async def reload() -> None:
        with contextlib.suppress(PetaliteError):  # it is in the log, and the old checkpoints serve on
            await service.reload()

    def reload_later() -> None:
        if service.models:  # the first load has to be over
            task = loop.create_task(reload())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, reload_later)


def orders(settings: Settings) -> Orders:
    """What workers are told; the models are still to come."""
    return Orders(
        models={},
        max_batch=settings.max_batch,
        max_wait_s=settings.max_wait_ms / 1000,
        max_pixels=settings.max_pixels,
        threads=settings.worker_threads,
        device=settings.device,
        attention=settings.attention,
        compute=settings.compute,
        engine=settings.engine,
    )


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises PetaliteError for an address that is wrong or taken."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PetaliteError(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from error
    return sock


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _allow_connections() -> None:
    """As many open files as this process may have: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))
