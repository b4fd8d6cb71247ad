"""A server under test, as the benchmarks start it: `petalite serve` in a process of its own, its memory watched.

with Server([checkpoint], "--queue", "64") as server:
    server.port, server.resident_mb()
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit


class Server:
    """`petalite serve` on a free port, ready when the block begins; killed at its end if it still runs."""

    def __init__(self, checkpoints: Sequence[Path], *options: str) -> None:
        self._log = tempfile.TemporaryFile("a+")  # noqa: SIM115 (closed in __exit__)
        command = [sys.executable, "-m", "petalite", "serve", *map(str, checkpoints), "--port", "0", "--json", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        facts = json.loads(line or "{}")
        if "url" not in facts:
            self.process.wait()
            raise SystemExit(f"the server did not start: {self.log()[-800:]}")
        self.url: str = facts["url"]
        self.port = urlsplit(self.url).port or 0
        self.rss_mb: list[tuple[float, float]] = []  # (s since the start, MB)
        self._started = time.monotonic()
        self._watching = True
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watching = False
        self._watcher.join()
        if self.process.poll() is None:
            self.stop()
        self._log.close()

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return json.load(response)

    def info(self) -> Any:
        """`/info`."""
        return self.get("/info")

    def workers(self) -> list[int]:
        """The workers' process ids."""
        return list(self.info()["workers"]["pids"])

    def signal(self, number: signal.Signals) -> None:
        """Send the front process a signal."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and the exit code that follows; killed after 30 s."""
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def log(self) -> str:
        """What it wrote to stderr."""
        self._log.seek(0)
        return self._log.read()

    def resident_mb(self) -> float:
        """Resident memory of the front process and its workers, MB."""
        pids = [self.process.pid, *_children(self.process.pid)]
        return sum(_resident_mb(pid) for pid in pids)

    def _watch(self) -> None:
        while self._watching:
            self.rss_mb.append((time.monotonic() - self._started, self.resident_mb()))
            time.sleep(1.0)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
