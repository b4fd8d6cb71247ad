"""The child process in which one variant is measured: commands in on stdin, answers out on stdout, a JSON line each.

    python -m petalite.measure.worker
    {"command": "load", "checkpoint": "runs/demo/checkpoints/nf4", "attention": "fa2"}
    {"ok": true, "result": {"format": "nf4", "load_s": 1.9, …}}

A process of its own keeps variants apart: their memory, their threads, what their libraries cached or printed, and
what happens when one of them dies. Answers go out through a copy of stdout; file descriptor 1 itself is pointed at
stderr before anything is imported, so that a library that prints cannot break the protocol. A line
`{"progress": true}` goes out at most once a second while work advances, so that the parent can tell slow from stuck.
The process ends when its stdin does: with its parent, whatever the parent died of.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

Answer = dict[str, Any]
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED", re.I)
_PROGRESS_EVERY_S = 1.0


class Session:
    """A loaded classifier and what can be measured on it; each public method is a command, its arguments the line's."""

    def __init__(self, load: Callable[..., Any], progress: Callable[[], None]) -> None:
        self._load, self._progress = load, progress
        self._classifier: Any = None
        self._batch: Any = None

    def ready(self) -> Answer:
        """Nothing but an answer: the process has imported what it needs."""
        return {}

    def load(
        self,
        checkpoint: str,
        attention: str = "auto",
        compute: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        engine: str = "auto",
    ) -> Answer:
        """Load the variant: the classifier's Info, `load_s`, `threads`, and `before_bytes`, what was held before."""
        import torch

        from petalite.device import resolve_device
        from petalite.measure import memory

        target = resolve_device(device)
        if target.type == "cuda":
            torch.cuda.init()  # the context is no part of loading
        memory.reset_peak(target)
        before = memory.peak(target)["peak_bytes"]
        start = time.perf_counter()
        self._classifier = self._load(
            checkpoint, device=device, attention=attention, compute=compute, threads=threads, engine=engine
        )
        self._wait()
        load_s = time.perf_counter() - start
        info: Answer = self._classifier.info.as_dict()
        return {**info, "load_s": load_s, "threads": torch.get_num_threads(), "before_bytes": before}

    def warm_up(self, batch: int) -> Answer:
        """Run until kernels are chosen and caches are filled."""
        from petalite.measure.latency import warm_up

        warm_up(self._forward(batch), self._wait)
        return {}

    def latency(self, batch: int, samples: int, seconds: float) -> Answer:
        """`samples_ms`: at least so many single passes and so many seconds."""
        from petalite.measure.latency import time_forwards

        taken = time_forwards(
            self._forward(batch), self._wait, samples=samples, seconds=seconds, progress=self._progress
        )
        self._release()
        return {"samples_ms": taken}

    def throughput(self, batch: int, seconds: float) -> Answer:
        """`images_per_s`, and the peak memory of running this batch."""
        from petalite.measure import memory
        from petalite.measure.latency import count_forwards

        self._release()
        memory.reset_peak(self._classifier.device)
        forward = self._forward(batch)
        rate = count_forwards(forward, self._wait, seconds=seconds, progress=self._progress)
        peak = memory.peak(self._classifier.device)
        self._release()
        return {"images_per_s": batch * rate, **peak}

    def memory(self) -> Answer:
        """The peak since the last reset: of loading and running when asked before any `throughput`."""
        from petalite.measure import memory

        return memory.peak(self._classifier.device)

    def profile(self, batch: int) -> Answer:
        """The contract's `kernels` block."""
        from petalite.measure.kernels import profile, profile_nodes

        if self._classifier.info.engine == "openvino":
            self._forward(batch)
            return profile_nodes(self._classifier.runner.timed_nodes(self._batch))
        return profile(self._forward(batch), self._wait, self._classifier.device)

    def _forward(self, batch: int) -> Callable[[], object]:
        """A call that runs a batch that already lies on the device: normal noise, as normalized photos are scaled."""
        import torch

        classifier = self._classifier
        if self._batch is None or len(self._batch) != batch:
            self._batch = None  # the old batch goes before the new one comes
            generator = torch.Generator().manual_seed(0)
            pixels = torch.randn(batch, 3, *classifier.preprocess.size, generator=generator)
            self._batch = pixels.to(classifier.device)
        pixels = self._batch
        return lambda: classifier.forward(pixels)

    def _wait(self) -> None:
        if self._classifier.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._classifier.device)

    def _release(self) -> None:
        """Give memory that is not in use back, so that a process that waits for its turn does not hold it."""
        gc.collect()
        if self._classifier is not None and self._classifier.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()


def serve(load: Callable[..., Any], lines: TextIO, out: TextIO, session_type: type[Session] = Session) -> NoReturn:
    """Answer commands from `lines` on `out`, for ever: the end of `lines` ends the process."""
    last = time.monotonic()

    def progress() -> None:
        nonlocal last
        if time.monotonic() - last > _PROGRESS_EVERY_S:
            last = time.monotonic()
            _write(out, {"progress": True})

    session = session_type(load, progress)
    commands = _commands(lines)
    while True:
        command = commands.get()
        name = command.pop("command")
        try:
            answer: Answer = {"ok": True, "result": getattr(session, name)(**command)}
        except Exception as error:  # whatever it was, the parent has to hear of it
            traceback.print_exc()
            answer = {"ok": False, **explain(error)}
        if not answer["ok"]:
            session._batch = None
            session._release()
        _write(out, answer)


def explain(error: BaseException) -> Answer:
    """`error`, one line for a person, and `out_of_memory`."""
    from petalite.errors import PetaliteError

    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(text)):
        tried = re.search(r"(?:tried to allocate|allocate) ([\d.]+ ?[KMGT]?i?B(?:ytes)?)", text, re.I)
        return {"error": "out of memory" + (f": tried to allocate {tried[1]}" if tried else ""), "out_of_memory": True}
    return {
        "error": text if isinstance(error, PetaliteError) else f"{type(error).__name__}: {text[:300]}",
        "out_of_memory": False,
    }


def _commands(lines: TextIO) -> queue.Queue[dict[str, Any]]:
    """Read commands in a thread, so that the end of the input is noticed in the middle of a measurement too."""
    commands: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        for line in lines:
            commands.put(json.loads(line))
        os._exit(0)  # the parent closed us or is gone: nobody reads an answer any more

    threading.Thread(target=read, daemon=True).start()
    return commands


def _write(out: TextIO, answer: Answer) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


def main(load: Callable[..., Any] | None = None, session_type: type[Session] = Session) -> NoReturn:
    """Serve with the engine's `load` (or another, for tests), with stdout kept for answers alone."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    if load is None:
        from petalite.engine import load as engine_load

        load = engine_load
    serve(load, sys.stdin, out, session_type)


if __name__ == "__main__":
    main()
