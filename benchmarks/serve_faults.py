"""What goes wrong while the server is under load, and whether what it promises holds: `serve_load.py --faults` runs these.

Each case has 64 clients that never stop asking; the fault happens two seconds in.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serve_client import Client
from serve_server import Server

CLIENTS = 64


def faults(checkpoint: Path, requests: Sequence[bytes], options: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each case: what was answered, and whether the promise held."""
    with tempfile.TemporaryDirectory() as folder:
        served = Path(folder) / checkpoint.name
        shutil.copytree(checkpoint, served)
        with Server([served], *options) as server:
            rows = [
                _case(server, requests, "worker_killed", _kill, seconds=12, promise=_worker_promise),
                _case(server, requests, "reload", _reload, seconds=15, promise=_all_answered),
                _case(server, requests, "reload_corrupted", lambda one: _corrupted(one, served), 12, _all_answered),
                _case(server, requests, "sigterm", lambda one: one.signal(signal.SIGTERM), 30, _none_lost),
            ]
            code = server.process.wait(30)
            counts = [json.loads(row["answers"]) for row in rows]
            told = sum(count for one in counts for status, count in one.items() if status != "0")
            ended = json.loads(server.log().splitlines()[-1])
            rows[-1]["held"] &= (
                code == 0 and ended["event"] == "stopped" and ended["accepted"] == ended["answered"] == told
            )
            rows[-1]["detail"] = (
                f"accepted {ended['accepted']}, answered {ended['answered']}, received {told}; exit {code}"
            )
    return rows


def _case(
    server: Server,
    requests: Sequence[bytes],
    name: str,
    fault: Callable[[Server], Any],
    seconds: float,
    promise: Callable[[Counter[int], str], bool],
) -> dict[str, Any]:
    statuses: Counter[int] = Counter()
    longest = 0.0
    details: list[str] = []
    client = Client("127.0.0.1", server.port, CLIENTS)
    ends = time.monotonic() + seconds

    def record(status: int, took: float, head: bytes, body: bytes) -> None:
        nonlocal longest
        statuses[status] += 1
        longest = max(longest, took)

    def happen() -> None:
        time.sleep(2.0)
        details.append(str(fault(server) or ""))

    happening = threading.Thread(target=happen)
    happening.start()
    client.run(requests, 10**9, record, stop=lambda: time.monotonic() > ends or client.refused > 0)
    happening.join()
    client.close()
    detail = "; ".join(filter(None, details))
    counts = {str(status): count for status, count in sorted(statuses.items())}
    return {
        "case": name,
        "answers": json.dumps(counts),
        "connections_refused": client.refused,
        "longest_s": round(longest, 2),
        "held": promise(statuses, detail),
        "detail": detail,
    }


def _all_answered(statuses: Counter[int], detail: str) -> bool:
    return set(statuses) == {200} and "not" not in detail.split()


def _none_lost(statuses: Counter[int], detail: str) -> bool:
    # 0: a connection that the kernel had made and the server never accepted
    return set(statuses) <= {0, 200}


def _worker_promise(statuses: Counter[int], detail: str) -> bool:
    # at most what one worker holds: two batches of 8
    return set(statuses) <= {200, 503} and statuses[503] <= 16 and detail.startswith("replaced")


def _kill(server: Server) -> str:
    before = server.workers()
    os.kill(before[0], signal.SIGKILL)
    for _ in range(200):
        time.sleep(0.1)
        now = server.workers()
        if len(now) == len(before) and before[0] not in now:
            return "replaced"
    return "not replaced"


def _reload(server: Server) -> str:
    before = set(server.workers())
    server.signal(signal.SIGHUP)
    for _ in range(250):
        time.sleep(0.1)
        if not before & set(server.workers()):
            return "new workers serve"
    return "not reloaded"


def _corrupted(server: Server, served: Path) -> str:
    before = server.workers()
    weights = served / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    seen = server.log().count("reload_refused")
    server.signal(signal.SIGHUP)
    for _ in range(200):
        time.sleep(0.1)
        if server.log().count("reload_refused") > seen:
            return "refused, the old workers serve" if server.workers() == before else "not served by the old workers"
    return "not refused"
