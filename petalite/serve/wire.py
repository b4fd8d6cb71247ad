"""Frames between the front process and a worker, over a socket pair.

    sock.sendall(ask(7, deadline, {"kind": "predict", "model": "int8"}, body))
    for answer in answers.feed(chunk): ...

A request carries the body as it came, so that nothing a stranger sent is parsed in the front process. Both ends run on
one machine and see the same monotonic clock, so a deadline can travel as it is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import IOBase
from typing import Any

_ASK = struct.Struct("!QdII")  # id, deadline, bytes of the head, bytes of the body
_ANSWER = struct.Struct(
    "!QHHfffII"
)  # id, status, batch, decode, queue and model in s, bytes of JSON, bytes of the body
#: The id of a worker's own messages: status 200 when it is ready (what it loaded, as JSON), 500 when it cannot be.
CONTROL = 0


@dataclass(frozen=True)
class Orders:
    """What the front process tells a worker as it starts it. models: name -> [folder to read, folder to speak of]."""

    models: dict[str, list[str]]
    max_batch: int
    max_wait_s: float
    max_pixels: int
    threads: int
    device: str
    attention: str
    compute: str
    engine: str


@dataclass(frozen=True)
class Ask:
    """A request for a worker. deadline: in the seconds of `time.monotonic`."""

    id: int
    deadline: float
    head: dict[str, Any]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What a worker says to a request: an HTTP status and a body, and where the time went.

    batch: images in the batch that this one was computed in (0: it was never computed). Seconds: decoding; waiting in
    the worker, for decoding and for the batch; the model. json_bytes: where binary data follows the body's JSON, the
    length of that JSON, else 0.
    """

    id: int
    status: int
    body: bytes
    batch: int = 0
    decode_s: float = 0.0
    queue_s: float = 0.0
    model_s: float = 0.0
    json_bytes: int = 0

    def frame(self) -> bytes:
        """The bytes to send."""
        times = (self.decode_s, self.queue_s, self.model_s)
        return _ANSWER.pack(self.id, self.status, self.batch, *times, self.json_bytes, len(self.body)) + self.body


def ask(id: int, deadline: float, head: Mapping[str, Any], body: bytes) -> bytes:
    """The frame of a request."""
    text = json.dumps(head).encode()
    return b"".join((_ASK.pack(id, deadline, len(text), len(body)), text, body))


def read_asks(stream: IOBase) -> Iterator[Ask]:
    """Requests as they arrive, until the other end closes."""
    while len(fixed := stream.read(_ASK.size)) == _ASK.size:
        id, deadline, head_bytes, body_bytes = _ASK.unpack(fixed)
        head, body = stream.read(head_bytes), stream.read(body_bytes)
        if len(body) < body_bytes:
            return
        yield Ask(id, deadline, json.loads(head), body)


class Answers:
    """Answers out of chunks of bytes, however those were cut."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, chunk: bytes) -> Iterator[Answer]:
        """The answers that are complete with `chunk`."""
        held = self._held
        held += chunk
        start = 0
        while len(held) - start >= _ANSWER.size:
            id, status, batch, decode_s, queue_s, model_s, json_bytes, size = _ANSWER.unpack_from(held, start)
            end = start + _ANSWER.size + size
            if len(held) < end:
                break
            body = bytes(held[start + _ANSWER.size : end])
            yield Answer(id, status, body, batch, decode_s, queue_s, model_s, json_bytes)
            start = end
        del held[:start]
