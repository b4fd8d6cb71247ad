"""A worker process: requests come through a socket, are decoded in threads, computed in batches, and answered.

    python -m petalite.serve.worker FD '{"models": {"int8": ["/tmp/copy", "runs/int8"]}, "max_batch": 8, …}'

The front process starts it. It says that it is ready only after its checkpoints were verified, loaded, and have answered
batches of every size that will be asked of them. It ends when the socket closes, after it has answered what it holds.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from petalite.errors import PetaliteError
from petalite.serve.logs import bridge, event
from petalite.serve.model import Decoded, Model, Outcome
from petalite.serve.refusal import Refusal, too_late
from petalite.serve.wire import CONTROL, Answer, Ask, Orders, read_asks


class Worker:
    """The threads between requests and the models. send: called with each answer, from any thread."""

    def __init__(self, orders: Orders, send: Callable[[Answer], None]) -> None:
        self._orders, self._send = orders, send
        self._asks: queue.SimpleQueue[tuple[float, Ask] | None] = queue.SimpleQueue()
        self._coming = 0  # requests that are here and not decoded
        self._counting = threading.Lock()
        self._models: dict[str, Model] = {}
        self._readers: list[threading.Thread] = []

    def load(self) -> dict[str, Any]:
        """Load and try every model, and begin; what is told to others about them."""
        orders = self._orders
        for name, (folder, shown) in orders.models.items():
            self._models[name] = Model.load(name, Path(folder), shown, orders, self._is_coming)
        self._readers = [
            threading.Thread(target=self._decode, name="decode", daemon=True) for _ in range(orders.threads)
        ]
        for reader in self._readers:
            reader.start()
        return {name: model.facts for name, model in self._models.items()}

    def take(self, ask: Ask) -> None:
        """Accept a request; its answer is sent."""
        with self._counting:
            self._coming += 1
        self._asks.put((time.monotonic(), ask))

    def close(self) -> None:
        """Answer what was accepted, then end."""
        for _ in self._readers:
            self._asks.put(None)
        for reader in self._readers:
            reader.join()
        for model in self._models.values():
            model.close()

    def _is_coming(self) -> bool:
        return self._coming > 0

    def _decode(self) -> None:
        while (arrived := self._asks.get()) is not None:
            received, ask = arrived
            started = time.monotonic()
            decoded = None
            try:
                decoded = self._read(ask, received, started)
            except Refusal as refusal:
                self._send(Answer(ask.id, refusal.status, refusal.body(), 0, time.monotonic() - started))
            except Exception as error:  # a fault of ours: this request is told so, the others go on
                self._send(Answer(ask.id, 500, _internal(error).body()))
            with self._counting:
                self._coming -= 1
            for model in self._models.values():
                model.advance(decoded)

    def _read(self, ask: Ask, received: float, started: float) -> Decoded:
        if started > ask.deadline:
            raise too_late()
        model = self._models.get(ask.head["model"])
        if model is None:  # a reload has taken it away since the request was accepted
            raise Refusal(404, "unknown_model", f"no model '{ask.head['model']}' any more")

        def answer(outcome: Outcome) -> None:
            status, body = 200, outcome.body
            if isinstance(body, Refusal):
                status, body = body.status, body.body()
            waited_s = started - received + outcome.waited_s
            times = (outcome.decode_s, waited_s, outcome.model_s)
            self._send(Answer(ask.id, status, body, outcome.batch, *times, outcome.json_bytes))

        return model.read(ask, started, answer)


def _internal(error: Exception) -> Refusal:
    event("internal_error", level="error", error=f"{type(error).__name__}: {error}"[:400])
    return Refusal(500, "internal", "an error of the server; its log says more")


def main(arguments: list[str]) -> int:
    """Be a worker on the socket `arguments[0]` with the orders `arguments[1]`."""
    # a terminal's Ctrl-C and a service manager's SIGTERM reach the whole group: the front process decides when to end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    bridge()
    sock = socket.socket(fileno=int(arguments[0]))
    sending = threading.Lock()

    def send(answer: Answer) -> None:
        try:
            with sending:
                sock.sendall(answer.frame())
        except OSError:
            os._exit(0)  # the front process is gone, and nobody waits for anything any more

    worker = Worker(Orders(**json.loads(arguments[1])), send)
    warnings.simplefilter("ignore")  # what an image's decoder has to say is an answer or nothing
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            facts = worker.load()
    except Exception as error:
        text = str(error) if isinstance(error, PetaliteError) else f"{type(error).__name__}: {error}"
        send(Answer(CONTROL, 500, json.dumps((text.splitlines() or ["no message"])[0][:500]).encode()))
        return 1
    finally:
        for line in filter(None, said.getvalue().splitlines()):  # notes of loading, as lines of the log
            event("log", level="warning", message=line)
    send(Answer(CONTROL, 200, json.dumps(facts).encode()))
    with sock.makefile("rb", buffering=1 << 20) as stream:
        for ask in read_asks(stream):
            worker.take(ask)
    worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
