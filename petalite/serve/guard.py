"""uvicorn's connections with limits of our own: slow and endless requests, huge headers, too many connections, draining.

    config = uvicorn.Config(app, http=partial(GuardedProtocol, guard=Guard(request_s=15)))

uvicorn waits for ever for the rest of a request that has begun, and keeps whatever headers it is sent. A server on an
open network can do neither.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from petalite.serve.refusal import Refusal

_LINGER_S = 1.0


@dataclass
class Guard:
    """Limits of connections. request_s: from a request's first byte to its last. draining: end each with its answer."""

    request_s: float
    idle_s: float = 30.0
    max_head_bytes: int = 32_768
    max_connections: int = 4096
    draining: bool = False


class GuardedProtocol(HttpToolsProtocol):
    """A connection that is closed when a request takes too long to arrive or has headers without end."""

    def __init__(self, *args: Any, guard: Guard, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guard = guard
        self._head_bytes = 0
        self._in_head = True
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection, which has to say something soon."""
        super().connection_made(transport)
        if len(self.connections) > self._guard.max_connections:
            self._refuse(Refusal(503, "not_ready", "too many connections; try again later", 1))
            return
        self._arm(self._guard.idle_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; of its headers only so many."""
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self._guard.max_head_bytes and not self.transport.is_closing():
            self._refuse(Refusal(431, "invalid_request", f"headers of more than {self._guard.max_head_bytes:,} bytes"))

    def on_message_begin(self) -> None:
        """A request begins: from here on it has `request_s`."""
        self._arm(self._guard.request_s)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The headers are there."""
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()
        if self._guard.draining and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The request has arrived whole."""
        self._in_head = True
        self._disarm()
        super().on_message_complete()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()

    def _refuse(self, refusal: Refusal) -> None:
        body = refusal.body()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._refused = True
        self.transport.write(STATUS_LINE[refusal.status] + head + body)
        # closing now would take the answer back, where more has been sent than was read: let the other side read it first
        self.transport.write_eof()
        self._arm(_LINGER_S)
