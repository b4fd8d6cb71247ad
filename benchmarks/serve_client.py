"""What the server's benchmarks send with: many connections in one process, at a few µs of Python a request.

    client = Client("127.0.0.1", 8000, connections=64)
    client.run(requests, count=5_000, record=record)         # closed loop: each connection asks again when it is answered
    client.run_at(requests, rate=3_000, seconds=20, record=record)

The load shares its two cores with the server, so a client library would be measured as much as the server is.
"""

from __future__ import annotations

import itertools
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Called for each answer: status (0: the connection ended without one), seconds, headers and body.
Record = Callable[[int, float, bytes, bytes], None]


def post(path: str, body: bytes, content_type: str = "image/jpeg", host: str = "localhost") -> bytes:
    """The bytes of a POST request."""
    lines = [f"POST {path} HTTP/1.1", f"host: {host}", f"content-type: {content_type}", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def photo_requests(folder: Path, path: str = "/predict") -> list[bytes]:
    """A request for each JPEG below a folder. Raises SystemExit where there are none."""
    files = sorted(folder.rglob("*.jpg"))
    if not files:
        raise SystemExit(f"no photos below {folder}")
    return [post(path, file.read_bytes()) for file in files]


@dataclass
class _Connection:
    sock: socket.socket
    started: float = 0.0
    left: bytes | memoryview = b""  # of the request
    held: bytes = b""  # of the answer
    busy: bool = False


class Client:
    """Connections that are kept open, and opened again when the server ends them."""

    def __init__(self, host: str, port: int, connections: int) -> None:
        self._address = (host, port)
        self._selector = selectors.DefaultSelector()
        self._connections = [self._open() for _ in range(connections)]
        self.refused = 0  # connections that could not be made

    def close(self) -> None:
        """Close every connection."""
        for connection in self._connections:
            connection.sock.close()
        self._selector.close()

    def run(self, requests: Sequence[bytes], count: int, record: Record, stop: Callable[[], bool] = bool) -> float:
        """Send `count` requests, in turn from `requests`, as fast as they are answered; the seconds it took.

        stop: asked now and then; when true no more are sent, but all answers are waited for.
        """
        supply = itertools.islice(itertools.cycle(requests), count)
        started = time.perf_counter()
        busy = 0
        for connection in self._connections:
            busy += self._send_next(connection, supply)
        while busy:
            for connection in self._wait(1.0):
                if self._receive(connection, record):
                    busy -= 1
                    if not stop():
                        busy += self._send_next(connection, supply)
        return time.perf_counter() - started

    def run_at(self, requests: Sequence[bytes], rate: float, seconds: float, record: Record) -> tuple[int, int]:
        """Send `rate` requests a second whatever the answers are; how many were sent, and how many found no connection."""
        supply = itertools.cycle(requests)
        free = list(self._connections)
        started = time.perf_counter()
        sent = skipped = due = 0
        while (now := time.perf_counter() - started) < seconds or len(free) < len(self._connections):
            if now < seconds:
                due = int(now * rate)
            while sent + skipped < due:
                if not free:
                    skipped = due - sent
                    break
                sent += self._send_next(free.pop(), supply)
            if now > seconds + 60:
                break
            for connection in self._wait(0.001):
                if self._receive(connection, record):
                    free.append(connection)
        return sent, skipped

    def _open(self) -> _Connection:
        sock = socket.create_connection(self._address, timeout=10)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(sock)
        self._selector.register(sock, selectors.EVENT_READ, connection)
        return connection

    def _send_next(self, connection: _Connection, supply: itertools.islice[bytes] | itertools.cycle[bytes]) -> int:
        request = next(supply, None)
        if request is None:
            return 0
        if connection.sock.fileno() < 0:
            try:
                fresh = self._open()
            except OSError:
                self.refused += 1
                return 0
            self._selector.modify(fresh.sock, selectors.EVENT_READ, connection)
            connection.sock = fresh.sock
        connection.started, connection.busy, connection.held = time.perf_counter(), True, b""
        connection.left = memoryview(request)
        self._push(connection)
        return 1

    def _push(self, connection: _Connection) -> None:
        try:
            connection.left = connection.left[connection.sock.send(connection.left) :]
        except BlockingIOError:
            pass
        except OSError:
            connection.left = b""  # what reads next finds out
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.left else 0)
        if connection.left or self._selector.get_key(connection.sock).events != events:
            self._selector.modify(connection.sock, events, connection)

    def _wait(self, timeout: float) -> list[_Connection]:
        ready = []
        for key, events in self._selector.select(timeout):
            if events & selectors.EVENT_WRITE:
                self._push(key.data)
            if events & selectors.EVENT_READ:
                ready.append(key.data)
        return ready

    def _receive(self, connection: _Connection, record: Record) -> bool:
        """Read what there is; true when a request's answer is complete (or will never come)."""
        try:
            chunk = connection.sock.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""
        seconds = time.perf_counter() - connection.started
        if not chunk:
            self._selector.unregister(connection.sock)
            connection.sock.close()
            was, connection.busy = connection.busy, False
            if was:
                record(0, seconds, b"", b"")
            return was
        connection.held += chunk
        head, found, body = connection.held.partition(b"\r\n\r\n")
        if not found:
            return False
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        if len(body) < int(lower[at:].split(b"\r\n", 1)[0]) or not connection.busy:
            return False
        connection.busy = False
        if b"\r\nconnection: close" in lower:
            self._selector.unregister(connection.sock)
            connection.sock.close()
        record(int(head[9:12]), seconds, head, body)
        return True
