"""What a server does with a request, before and after a worker has it: admission, body, deadline, answer.

    response = await service.answer(request, "predict", model=None)

Nothing that was sent is parsed here. A request is refused at the door (429) when as many are open as the queue holds, so
that what was accepted can keep its deadline.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from petalite.errors import PetaliteError, did_you_mean
from petalite.serve.logs import event
from petalite.serve.metrics import Metrics
from petalite.serve.refusal import Refusal
from petalite.serve.settings import Settings
from petalite.serve.wire import Answer

#: Bodies that are being read take at most so many times the limit of one.
_HELD_BODIES = 16


class Workers(Protocol):
    """What answers: processes of this machine (`pool`) or replicas of a cluster (`replicas`)."""

    restarts: int
    models: dict[str, dict[str, Any]]

    @property
    def ready(self) -> int:
        """How many take requests."""

    @property
    def pids(self) -> list[int]:
        """Their process ids, where they are this machine's."""

    async def ask(self, head: Mapping[str, Any], body: bytes, deadline: float) -> tuple[Answer, float]:
        """An answer, and the seconds that the request waited for a worker. Raises Refusal."""


class Service:
    """The state of one server. load: has the workers read the checkpoints again; raises PetaliteError where it cannot."""

    def __init__(
        self, settings: Settings, pool: Workers, metrics: Metrics, load: Callable[[], Awaitable[None]]
    ) -> None:
        self.settings, self.pool, self.metrics = settings, pool, metrics
        self._load = load
        self._open = self.accepted = self.answered = 0
        self._reading_bytes = 0
        self._reloading = asyncio.Lock()
        self.draining = False
        metrics.limit.set(settings.queue)
        metrics.open.set_function(lambda: self._open)
        metrics.ready.set_function(lambda: pool.ready)
        metrics.restarts.set_function(lambda: pool.restarts)

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests here."""
        return self.pool.ready > 0 and not self.draining

    @property
    def open(self) -> int:
        """Requests accepted and not answered."""
        return self._open

    @property
    def models(self) -> Mapping[str, Mapping[str, Any]]:
        """What the workers have loaded, by name; empty until they have."""
        return self.pool.models

    def model(self, name: str | None) -> str:
        """The name of a model that is served, the first where none is given. Raises Refusal."""
        models = self.settings.models
        if name is None:
            return next(iter(models))
        if name not in models:
            known = ", ".join(models)
            raise Refusal(404, "unknown_model", f"no model '{name:.80}'{did_you_mean(name, models)}; served: {known}")
        return name

    def allow(self, request: Request) -> None:
        """Raise Refusal unless the request carries the API key, where one is set."""
        key = self.settings.api_key
        if key is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode(), key.encode()):
            raise Refusal(401, "unauthorized", "this server needs its API key: Authorization: Bearer KEY, or X-API-Key")

    async def reload(self) -> None:
        """Read the checkpoint folders again and serve what they hold now. Raises PetaliteError, and the old ones serve on."""
        async with self._reloading:
            event("reload")
            try:
                await self._load()
            except PetaliteError as error:
                self.metrics.reloaded("refused")
                event("reload_refused", level="error", error=str(error))
                raise
            self.metrics.reloaded("done")
            event("reloaded", models=list(self.models))

    async def answer(self, request: Request, kind: str, model: str | None) -> Response:
        """The response to a request for predictions; kind: `predict` or `infer`."""
        arrived = time.monotonic()
        answer, waited_s, counted = None, 0.0, False
        try:
            self.allow(request)
            head: dict[str, str | None] = {"kind": kind, "model": self.model(model)}
            if not self.pool.models:
                raise Refusal(503, "not_ready", "the server is loading its checkpoints", retry_after_s=5)
            if self._open >= self.settings.queue:
                raise Refusal(429, "overloaded", f"{self._open} requests are open; try again later", retry_after_s=1)
            self._open += 1
            self.accepted += 1
            counted = True
            deadline = arrived + self.settings.deadline_s
            headers = request.headers
            if kind == "predict":
                head |= {"content_type": headers.get("content-type"), "top_k": request.query_params.get("top_k")}
            else:
                head["json_bytes"] = headers.get("inference-header-content-length")
            body = await self._read(request, deadline)
            answer, waited_s = await self.pool.ask(head, body, deadline)
            response = _response(answer, waited_s)
        except Refusal as refusal:
            response = refused(refusal)
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody reads it
        finally:
            self._open -= counted
            self.answered += counted
        seconds = time.monotonic() - arrived
        self.metrics.answered(kind, response.status_code, seconds, waited_s, answer)
        if self.settings.log_requests or response.status_code >= 500:
            level = "error" if response.status_code >= 500 else "info"
            event("request", level, endpoint=kind, status=response.status_code, ms=round(1000 * seconds, 2))
        return response

    async def _read(self, request: Request, deadline: float) -> bytes:
        """The body. Raises Refusal when it is too large or too slow."""
        limit = self.settings.max_body_bytes
        stated = request.headers.get("content-length")
        if stated is not None and int(stated) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                async for chunk in request.stream():
                    if not chunk:
                        continue
                    chunks.append(chunk)
                    size += len(chunk)
                    self._reading_bytes += len(chunk)
                    if size > limit:
                        raise _too_large(limit)
                    if self._reading_bytes > _HELD_BODIES * limit:
                        raise Refusal(429, "overloaded", "too much is being uploaded; try again later", 1)
        except TimeoutError:
            raise Refusal(408, "slow_body", "the body did not arrive before the deadline") from None
        finally:
            self._reading_bytes -= size
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def refused(refusal: Refusal) -> Response:
    """The response that says so."""
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(refusal.body(), refusal.status, headers, "application/json")


def _response(answer: Answer, waited_s: float) -> Response:
    headers = {}
    if answer.batch:
        times = {"queue": waited_s + answer.queue_s, "decode": answer.decode_s, "model": answer.model_s}
        entries = [f"{name};dur={1000 * seconds:.3f}" for name, seconds in times.items()]
        headers["Server-Timing"] = ", ".join([*entries, f'batch;desc="{answer.batch}"'])
    if answer.json_bytes:
        headers["Inference-Header-Content-Length"] = str(answer.json_bytes)
    if answer.status == 503:
        headers["Retry-After"] = "1"
    return Response(
        answer.body, answer.status, headers, "application/octet-stream" if answer.json_bytes else "application/json"
    )


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "body_too_large", f"the body is larger than {limit / 1e6:g} MB (--max-body-mb)")
