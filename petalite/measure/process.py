"""The parent's side of a measuring process: commands as methods, and every way it can fail as one line.

    with Worker() as worker:
        info = worker.load(checkpoint, attention="fa2", device="cpu")
        samples_ms = worker.latency(batch=1, samples=30, seconds=3.0)

What the child's libraries print is kept and shown only when it dies without a word.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from petalite.errors import PetaliteError

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {} import main; main()"
#: Torch's profiler writes such lines in the best of health.
_NOISE = ("USDT:", "ERROR: gpuGetDeviceCount", "WARNING:", "INFO:")


def program(module: str) -> list[str]:
    """The command that runs `main` of a module in a process with this one's import path and no other."""
    return [
        sys.executable,
        "-P",
        "-c",
        _START.format(module),
        json.dumps(sys.path),
    ]  # -m would put the folder before it


class WorkerError(PetaliteError):
    """A command failed, or the process is gone; `out_of_memory` tells the reason that a smaller batch may avoid."""

    def __init__(self, reason: str, out_of_memory: bool = False) -> None:
        super().__init__(reason)
        self.out_of_memory = out_of_memory


class Worker:
    """A measuring process; use it as a context manager. Every method raises WorkerError with a one-line reason.

    silence_s: seconds without an answer or a sign of progress after which the process counts as stuck and is ended.
    """

    def __init__(self, command: Sequence[str] | None = None, *, silence_s: float = 900.0) -> None:
        self._silence_s = silence_s
        self._ended: str | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        self._process = subprocess.Popen(
            command or program("petalite.measure.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def ready(self) -> None:
        """Wait until the process has started and imported what it needs."""
        self._ask("ready")

    def load(
        self,
        checkpoint: Path,
        *,
        attention: str = "auto",
        compute: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        engine: str = "auto",
    ) -> dict[str, Any]:
        """Load the variant; its Info, `load_s`, `threads` and `before_bytes`."""
        return self._ask(
            "load", checkpoint=str(checkpoint), attention=attention, compute=compute, device=device, threads=threads,
            engine=engine,
        )  # fmt: skip

    def warm_up(self, batch: int) -> None:
        """Run a batch until the times settle."""
        self._ask("warm_up", batch=batch)

    def latency(self, batch: int, samples: int, seconds: float) -> list[float]:
        """Milliseconds of at least `samples` single passes and at least `seconds` in all."""
        return list(self._ask("latency", batch=batch, samples=samples, seconds=seconds)["samples_ms"])

    def throughput(self, batch: int, seconds: float) -> dict[str, Any]:
        """`images_per_s`, `peak_bytes`, `kind` of running this batch for at least `seconds`."""
        return self._ask("throughput", batch=batch, seconds=seconds)

    def memory(self) -> dict[str, Any]:
        """`peak_bytes` and `kind` since the process loaded, or since its last throughput began."""
        return self._ask("memory")

    def profile(self, batch: int) -> dict[str, Any]:
        """Where the time of a pass goes: the contract's `kernels` block."""
        return self._ask("profile", batch=batch)

    def printed(self) -> list[str]:
        """What the process and its libraries wrote to stderr and stdout, without known noise."""
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").splitlines()
        return [line for line in lines if line.strip() and not line.startswith(_NOISE)]

    def close(self, patience_s: float = 5.0) -> None:
        """End the process; by force when it has not gone after `patience_s`."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()  # what the child takes as the order to end
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(patience_s)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._stderr.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # after an interruption or an error nobody waits for a measurement to end
        self.close(patience_s=0.0 if error is not None else 5.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _ask(self, name: str, **arguments: Any) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdin.closed:
            raise WorkerError("the measuring process was closed")
        try:
            self._process.stdin.write(json.dumps({"command": name, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._death() from None
        while True:
            try:
                line = self._answers.get(timeout=self._silence_s)
            except queue.Empty:
                self._process.kill()
                self._ended = f"no sign of life for {self._silence_s:g} s during '{name}'; the process was ended"
                raise WorkerError(self._ended) from None
            if line is None:
                self._answers.put(None)
                raise self._death()
            answer = json.loads(line)
            if "ok" not in answer:
                continue
            if not answer["ok"]:
                raise WorkerError(answer["error"], answer["out_of_memory"])
            return dict(answer["result"])

    def _death(self) -> WorkerError:
        code = self._process.wait()
        if self._ended:
            return WorkerError(self._ended)
        if code == -signal.SIGKILL:
            return WorkerError("the process was killed, most likely because the system ran out of memory", True)
        last = self.printed()[-1:] or ["nothing was printed"]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return WorkerError(f"the process died ({how}): {last[0].strip()[:200]}")
