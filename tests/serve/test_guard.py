"""Connections that misbehave: slow, endless, nonsense. Each ends, and costs nobody else anything."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from petalite.serve.guard import Guard, GuardedProtocol


async def _app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def talk(*pieces: bytes, pause: float = 0.0, **limits: Any) -> bytes:
    """What the server says until it closes the connection, to pieces sent with a pause between them."""

    async def run() -> bytes:
        config = uvicorn.Config(_app, log_config=None, ws="none", lifespan="off", timeout_keep_alive=1)
        config.load()
        state = ServerState()
        guard = Guard(**{"request_s": 0.3, "idle_s": 0.3, **limits})
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: GuardedProtocol(config=config, server_state=state, app_state={}, guard=guard), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        said = b""
        try:
            async with asyncio.timeout(5):
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(pause)
                while chunk := await reader.read(65536):
                    said += chunk
        except ConnectionError:
            pass
        writer.close()
        server.close()
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        return said

    return asyncio.run(run())


REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"


def test_a_request_is_answered_and_the_connection_kept() -> None:
    assert talk(REQUEST, REQUEST, pause=0.05).count(b"200 OK") == 2


def test_while_draining_a_connection_ends_with_its_answer() -> None:
    said = talk(REQUEST, REQUEST, pause=0.05, draining=True)
    assert said.count(b"200 OK") == 1
    assert b"connection: close" in said


@pytest.mark.parametrize(
    "pieces",
    [
        (b"",),
        (b"POST / HT",),
        (b"POST / HTTP/1.1\r\nhost: x\r\nx-a: ", *[b"a"] * 8),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n", *[b"a"] * 8),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n", *[b"1\r\na\r\n"] * 8),
    ],
)
def test_what_takes_too_long_to_arrive_is_cut_off(pieces: tuple[bytes, ...]) -> None:
    assert b"200 OK" not in talk(*pieces, pause=0.05)


def test_headers_without_end_are_refused() -> None:
    said = talk(b"GET / HTTP/1.1\r\nhost: x\r\n", *[b"x-h: " + b"a" * 500 + b"\r\n"] * 20, max_head_bytes=4096)
    assert said.startswith(b"HTTP/1.1 431 ")
    assert b'"error_type": "invalid_request"' in said


def test_nonsense_is_refused() -> None:
    assert talk(b"\x16\x03\x01nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_more_connections_than_allowed_are_refused() -> None:
    assert talk(REQUEST, max_connections=0).startswith(b"HTTP/1.1 503 ")
