"""The application in this process, without a socket: a request in, status, headers and body out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petalite.serve.app import build_app
from petalite.serve.metrics import Metrics
from petalite.serve.page import Page
from petalite.serve.refusal import too_late
from petalite.serve.service import Service
from petalite.serve.settings import Settings
from petalite.serve.wire import Answer

PREDICTIONS = b'[{"label": "rose", "score": 0.9}]'


@dataclass
class FakePool:
    """Answers everything at once, or when `gate` opens; remembers what it was asked."""

    models: dict[str, Any] = field(default_factory=lambda: {"a": {"checkpoint": "runs/a", "labels": ["rose"]}})
    ready: int = 1
    restarts: int = 0
    pids: tuple[int, ...] = (4711,)
    gate: asyncio.Event | None = None
    asked: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    answer: Answer = field(default_factory=lambda: Answer(1, 200, PREDICTIONS, 2, 0.001, 0.002, 0.003))

    async def ask(self, head: dict[str, Any], body: bytes, deadline: float) -> tuple[Answer, float]:
        self.asked.append((head, body))
        if self.gate is not None:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self.gate.wait()
            except TimeoutError:
                raise too_late() from None
        return self.answer, 0.001


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Application:
    """The app on a fake pool. `checkpoint`: a folder with a config.json, served as the model `a`."""

    def __init__(self, checkpoint: Path, pool: FakePool | None = None, **settings: Any) -> None:
        self.pool = pool or FakePool()
        self.settings = Settings(checkpoints=(checkpoint,), **settings)
        self.metrics = Metrics()
        self.service = Service(self.settings, self.pool, self.metrics, nothing)  # type: ignore[arg-type]
        self.app = build_app(self.service, Page.read(self.settings.samples))

    async def call(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterator[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """One request. A body that is an iterator comes in pieces, without a stated length."""
        path, _, query = path.partition("?")
        raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        if isinstance(body, bytes) and body:
            raw.append((b"content-length", str(len(body)).encode()))
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "scheme": "http",
            "headers": raw, "server": ("localhost", 80), "client": ("localhost", 1), "state": {},
        }  # fmt: skip
        pieces = _once(body) if isinstance(body, bytes) else body
        started: dict[str, Any] = {}
        sent = bytearray()

        async def receive() -> dict[str, Any]:
            piece = await anext(pieces, None)
            return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                sent.extend(message.get("body", b""))

        await self.app(scope, receive, send)  # type: ignore[arg-type]
        found = {name.decode().lower(): value.decode() for name, value in started["headers"]}
        return Response(started["status"], found, bytes(sent))

    def __call__(self, *arguments: Any, **more: Any) -> Response:
        """`call`, in an event loop of its own."""
        return asyncio.run(self.call(*arguments, **more))


async def nothing() -> None:
    """In the place of loading checkpoints."""


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
