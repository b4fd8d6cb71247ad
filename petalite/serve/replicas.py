"""What runs on a Ray cluster: one front that speaks HTTP and holds no model, and engines that decode and compute.

    serve.deployment(Engine).bind(orders, digests, deadline_s)       # see `cluster.application`
    serve.deployment(serve.ingress()(Front)).bind(settings, engine)

An engine is a worker of `petalite serve` inside a replica: the same threads, the same batches. The front is the same
application; requests reach the engines through Ray's handle instead of a socket. A replica that dies costs the requests
it held; they are refused with 503 and not tried again, since one of them may be what killed it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from petalite.errors import PetaliteError
from petalite.files import sha256
from petalite.serve.app import build_app
from petalite.serve.logs import event
from petalite.serve.metrics import Metrics
from petalite.serve.page import Page
from petalite.serve.pool import HUNG_S
from petalite.serve.refusal import Refusal, too_late
from petalite.serve.service import Service
from petalite.serve.settings import Settings
from petalite.serve.wire import Answer, Ask, Orders

#: The engines' deployment, in Ray's words.
ENGINE = "Engine"
NO_RELOAD = "on a Ray cluster a checkpoint is replaced by serving again: petalite serve … --on ray"
_FILES = ("config.json", "model.safetensors", "plan.json")
_LOOK_S = 1.0


def digest(folder: Path) -> str:
    """What a checkpoint holds, as a text. Raises PetaliteError where a file of it is missing."""
    try:
        return " ".join(sha256(folder / name) for name in _FILES if (folder / name).exists() or name == _FILES[0])
    except OSError as error:
        raise PetaliteError(f"{folder} cannot be read here: {error.strerror or error}") from error


class Engine:
    """A replica with the models. digests: by model, what its folder held when it was deployed.

    Raises PetaliteError for a folder that is not there or holds something else by now: replicas must not differ.
    """

    def __init__(self, orders: Orders, digests: Mapping[str, str], deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._ids = itertools.count(1)
        self._asked: dict[int, tuple[float, asyncio.Future[Answer]]] = {}
        for name, (folder, shown) in orders.models.items():
            if digest(Path(folder)) != digests[name]:
                raise PetaliteError(f"{shown} has changed since it was deployed; deploy it again")
        from petalite.serve.worker import Worker  # torch, which the front does without

        self._worker = Worker(orders, self._send)
        self._facts = self._worker.load()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def facts(self) -> dict[str, Any]:
        """What was loaded, by model."""
        return self._facts

    async def ask(self, head: dict[str, Any], body: bytes, left_s: float) -> Answer:
        """A request's answer; `left_s` remain of its time."""
        self._loop = asyncio.get_running_loop()
        number, until = next(self._ids), time.monotonic() + left_s
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._asked[number] = until, future
        try:
            self._worker.take(Ask(number, until, head, body))
            return await future
        finally:
            del self._asked[number]

    async def check_health(self) -> None:
        """Ray asks this now and then, and replaces a replica that raises: one that keeps a request long past its deadline."""
        oldest = min((until for until, _ in self._asked.values()), default=None)
        if oldest is not None and time.monotonic() > oldest + HUNG_S:
            raise RuntimeError("a request is kept long past its deadline")

    def _send(self, answer: Answer) -> None:
        """From the worker's threads."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._settle, answer)

    def _settle(self, answer: Answer) -> None:
        asked = self._asked.get(answer.id)
        if asked is not None and not asked[1].done():  # nobody waits for it where the client has gone
            asked[1].set_result(answer)


class Replicas:
    """The engines as the front sees them. engine: Ray's handle to the deployment."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._errors = import_module("ray.exceptions")
        self._serve_errors = import_module("ray.serve.exceptions")
        self.models: dict[str, dict[str, Any]] = {}
        self.ready = self.restarts = self._lost = 0
        self.pids: list[int] = []  # on machines that are Ray's to know

    async def ask(self, head: Mapping[str, Any], body: bytes, deadline: float) -> tuple[Answer, float]:
        """An engine's answer, and the seconds that the request was neither waiting there nor computed. Raises Refusal."""
        asked = time.monotonic()
        try:
            async with asyncio.timeout(deadline - asked):
                answer: Answer = await self._engine.ask.remote(dict(head), body, deadline - asked)
        except TimeoutError:
            raise too_late() from None
        except self._errors.RayTaskError:  # a fault of ours
            raise
        except (self._errors.RayError, self._serve_errors.RayServeException) as error:
            event("replica_lost", level="error", error=str(error).strip().splitlines()[0][:400])
            message = "the replica that held this request ended; another takes its place, try again"
            raise Refusal(503, "worker_lost", message, retry_after_s=1) from error
        there = answer.decode_s + answer.queue_s + answer.model_s
        return answer, max(0.0, time.monotonic() - asked - there)

    async def watch(self, application: str) -> None:
        """Count the engines that run, again and again; the first of them says what was loaded."""
        serve = import_module("ray.serve")
        while True:
            status = await asyncio.to_thread(serve.status)
            found = status.applications.get(application)
            engines = found.deployments.get(ENGINE) if found else None
            running = int(engines.replica_states.get("RUNNING", 0)) if engines else 0
            if running and not self.models:
                self.models = await self._engine.facts.remote()
            self.count(running)
            await asyncio.sleep(_LOOK_S)

    def count(self, running: int) -> None:
        """So many engines run now; of those that were lost before, so many have been replaced."""
        self._lost += max(0, self.ready - running)
        back = min(max(0, running - self.ready), self._lost)
        self._lost -= back
        self.restarts += back
        self.ready = running


class Front:
    """The replica that Ray's proxies send requests to: the application of `petalite serve`."""

    def __init__(self, settings: Settings, engine: Any) -> None:
        self._settings, self._replicas = settings, Replicas(engine)
        self._service = Service(settings, self._replicas, Metrics(), _reload)

    def __serve_build_asgi_app__(self) -> Any:
        """Ray's hook: the application, once it runs in its event loop."""
        serve = import_module("ray.serve")
        watching = self._replicas.watch(serve.get_replica_context().app_name)
        self._watching = asyncio.get_running_loop().create_task(watching)
        return build_app(self._service, Page.read(self._settings.samples))

    async def drain(self) -> int:
        """Be ready no more, so that balancers turn away; the number of open requests."""
        self._service.draining = True
        return self._service.open

    async def counts(self) -> dict[str, int]:
        """Requests accepted and answered so far."""
        return {"accepted": self._service.accepted, "answered": self._service.answered}


async def _reload() -> None:
    raise PetaliteError(NO_RELOAD)
