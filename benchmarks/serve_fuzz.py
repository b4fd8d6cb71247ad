"""Hostile input against a running server: what a stranger may send, by the ten thousand.

    python benchmarks/serve_fuzz.py runs/q/int8-channel --photos ../shared/data/flowers102/test --cases 20000

Promises: every answer comes before the deadline (and a second), none is a 500, no worker ends, memory stays bounded, and
afterwards the server answers an honest request as before. Cases are made from a seed: `--only KIND` repeats one kind.
"""

from __future__ import annotations

import argparse
import queue
import random
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from serve_cases import KINDS, MODEL, Case, photos_of
from serve_client import post
from serve_load import write
from serve_server import Server

DEADLINE_S = 4.0
THREADS = 12


class Tally:
    """What came of the cases, from many threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.statuses: dict[str, Counter[int]] = {kind: Counter() for kind in KINDS}
        self.longest: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.broken: list[str] = []

    def add(self, case: Case, status: int, seconds: float, number: int) -> None:
        """Count an answer (0: the connection ended without one)."""
        limit = DEADLINE_S + (6.0 if case.cut_off else 1.0)
        with self.lock:
            self.statuses[case.kind][status] += 1
            self.longest[case.kind] = max(self.longest[case.kind], seconds)
            if status >= 500 and status != 503:
                self.broken.append(f"case {number} ({case.kind}): status {status}")
            if seconds > limit:
                self.broken.append(f"case {number} ({case.kind}): {seconds:.1f} s")
            if status == 0 and not case.cut_off:
                self.broken.append(f"case {number} ({case.kind}): no answer")


def main() -> int:
    """Send the cases, look at the server, print and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(KINDS), help="one kind of case")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    photos = photos_of(options.photos)
    tally = Tally()
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(
            [Path(shutil.copytree(options.checkpoint, Path(folder) / MODEL))],
            "--deadline-s",
            str(DEADLINE_S),
            "--queue",
            "64",
        ) as server,
    ):
        honest = post("/predict", photos[0])
        expected = talk(server.port, Case("honest", [honest]))[1]
        workers, before = server.workers(), server.resident_mb()
        started = time.monotonic()
        send(server.port, photos, options, tally)
        seconds = time.monotonic() - started
        status, again = talk(server.port, Case("honest", [honest]))
        problems = list(tally.broken)
        problems += [] if status == 200 and again == expected else [f"an honest request now gets {status}"]
        problems += [] if server.workers() == workers else ["a worker ended"]
        problems += [line for line in server.log().splitlines() if '"internal_error"' in line or "model_failed" in line]
        most, end = max(value for _, value in server.rss_mb), server.resident_mb()
        code = server.stop()
        problems += [] if code == 0 else [f"exit code {code}"]
    rows = [
        {
            "kind": kind,
            "cases": sum(tally.statuses[kind].values()),
            "answers": " ".join(f"{status}:{count}" for status, count in sorted(tally.statuses[kind].items())),
            "longest_s": round(tally.longest[kind], 2),
            "rss_before_mb": round(before),
            "rss_most_mb": round(most),
            "rss_end_mb": round(end),
            "seed": options.seed,
        }
        for kind in KINDS
        if tally.statuses[kind]
    ]
    write(options, "serve-fuzz", rows)
    print(f"{sum(row['cases'] for row in rows)} cases in {seconds:.0f} s, {len(problems)} problems")
    print(*problems[:20], sep="\n")
    return int(bool(problems))


def send(port: int, photos: list[bytes], options: argparse.Namespace, tally: Tally) -> None:
    """All cases, from several threads; slow ones wait beside the others."""
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(options.cases):
        numbers.put(number)
    kinds = [options.only] if options.only else list(KINDS)
    weights = [KINDS[kind][1] for kind in kinds]

    def run() -> None:
        connection: socket.socket | None = None
        while True:
            try:
                number = numbers.get_nowait()
            except queue.Empty:
                return
            chance = random.Random(f"{options.seed}/{number}")
            kind = chance.choices(kinds, weights)[0]
            case = KINDS[kind][0](chance, photos)
            started = time.monotonic()
            if case.cut_off and connection is not None:  # tried once, on a connection of its own
                connection.close()
                connection = None
            connection, status = exchange(port, connection, case)
            tally.add(case, status, time.monotonic() - started, number)

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def exchange(port: int, connection: socket.socket | None, case: Case) -> tuple[socket.socket | None, int]:
    """Send a case and read the status; the connection, where it can be used again."""
    for attempt in (0, 1):
        fresh = connection is None
        try:
            if connection is None:
                connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S + 8)
            status, keep = _talk(connection, case)
            if status or fresh or attempt:
                if keep:
                    return connection, status
                connection.close()
                return None, status
        except OSError:
            if fresh or attempt:
                return None, 0
        # a connection that was kept may have ended meanwhile, as its last answer said or its idle time was up
        if connection is not None:
            connection.close()
        connection = None
    return None, 0


def talk(port: int, case: Case) -> tuple[int, bytes]:
    """The status and the body of an answer on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for piece in case.pieces:
            connection.sendall(piece)
        status, body, _ = _read(connection)
    return status, body


def _talk(connection: socket.socket, case: Case) -> tuple[int, bool]:
    try:
        for piece in case.pieces:
            connection.sendall(piece)
            if case.pause_s:
                time.sleep(case.pause_s)
        if case.end:
            connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it was refused before all was sent: the answer may still be there
    status, _, keep = _read(connection)
    return status, keep and not case.cut_off and not case.end


def _read(connection: socket.socket) -> tuple[int, bytes, bool]:
    held = b""
    while b"\r\n\r\n" not in held:
        chunk = connection.recv(65536)
        if not chunk:
            return 0, b"", False
        held += chunk
    head, _, body = held.partition(b"\r\n\r\n")
    lower = head.lower()
    size = int(lower.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
    while len(body) < size:
        chunk = connection.recv(65536)
        if not chunk:
            return 0, b"", False
        body += chunk
    return int(head[9:12]), body, b"connection: close" not in lower


if __name__ == "__main__":
    raise SystemExit(main())
