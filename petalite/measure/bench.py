"""Speed, memory and kernels of several variants on one machine, in fair turns.

    rows = benchmark(
        [Variant("fp32", Path("fp32")), Variant("nf4-fa2", Path("nf4"), attention="fa2")], batch_sizes=(1, 32)
    )
    rows[1]["latency"]      # {"batch_size": 1, "mean_ms": 9.4, "p50_ms": 9.3, "p95_ms": 9.9, "p99_ms": 10.4, "samples": 320}

Each variant lives in a process of its own (`process.Worker`), all of them loaded before the first is timed. Latency is
taken in interleaved rounds: in each round every variant has its turn, and the one that begins moves on from round to
round, so that a machine that grows warmer or busier slows all variants alike. Then come the sweep of batch sizes for
throughput and, last, since a profiler leaves traces, the kernels. Checkpoints are all it needs: the input is noise.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petalite.console import say, track
from petalite.errors import PetaliteError
from petalite.files import disk_bytes
from petalite.measure.latency import latency_entry
from petalite.measure.names import check_words
from petalite.measure.process import Worker, WorkerError
from petalite.measure.tables import table, write_benchmark_csv

__all__ = ["Variant", "benchmark", "table", "write_benchmark_csv"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A checkpoint with the attention, the compute precision and the engine that it runs with, as `load` takes them."""

    name: str
    checkpoint: Path
    attention: str = "auto"
    compute: str = "auto"
    engine: str = "auto"


@dataclass
class _Run:
    """What became of a variant so far."""

    variant: Variant
    worker: Worker
    info: Row = field(default_factory=dict)
    failure: str | None = None
    rounds_ms: dict[int, list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    latency_failures: dict[int, str] = field(default_factory=dict)
    throughput: list[Row] = field(default_factory=list)
    memory: Row | None = None
    kernels: list[Row] = field(default_factory=list)

    def fail(self, reason: str) -> None:
        """Give the variant up and its memory back."""
        self.failure = reason
        say(f"{self.variant.name}: {reason}")
        self.worker.close(patience_s=0.0)


def benchmark(
    variants: Sequence[Variant],
    *,
    batch_sizes: Sequence[int] = (1,),
    throughput_batches: Sequence[int] = (1, 8, 32),
    samples: int = 30,
    seconds: float = 3.0,
    rounds: int = 5,
    device: str = "auto",
    threads: int | None = None,
    profile: bool = True,
    on_raw: Callable[[str, Row], None] | None = None,
    start: Callable[[], Worker] = Worker,
) -> list[Row]:
    """Measure `variants` and return a row each, in their order, as JSON values.

    Latency of every batch size: at least `samples` passes and `seconds` seconds, in `rounds` rounds. Throughput of
    every batch size in `throughput_batches`: `seconds` seconds; one that does not fit ends that variant's sweep and
    stands in the row with its reason. Memory is the peak of loading and running the first of `batch_sizes`.
    A row has the contract's `latency` (first batch size), `throughput` (the best), `memory` and `kernels`, also
    `latency_by_batch`, `throughput_by_batch`, `kernels_by_batch`, `attention_ran`, `load_s`, `threads` and the `raw`
    samples. A variant that cannot run has status `failed`, a one-line `reason`, and None for what was not measured.
    `on_raw(name, raw)` is called as soon as a variant's samples are complete. `start` starts a process.
    Raises PetaliteError for arguments that make no sense.
    """
    _check(variants, (*batch_sizes, *throughput_batches), batch_sizes, samples, seconds, rounds)
    settings = {"device": device, "threads": threads}
    with ExitStack() as stack:
        runs = [_Run(variant, stack.enter_context(start())) for variant in variants]
        _load(runs, settings)
        for batch in batch_sizes:
            _latency(_living(runs), batch, samples, seconds, rounds, first=batch == batch_sizes[0])
        if on_raw is not None:
            for run in _living(runs):
                on_raw(run.variant.name, _raw(run))
        _throughput(_living(runs), throughput_batches, seconds)
        if profile:
            for run in track(_living(runs), "kernels"):
                _profile(stack, start, run, settings, batch_sizes)
        return [_row(run) for run in runs]


def _living(runs: Sequence[_Run]) -> list[_Run]:
    return [run for run in runs if run.failure is None]


def _load(runs: Sequence[_Run], settings: Row) -> None:
    """Load one after the other, once all processes have started: starting is not loading."""
    for load in (False, True):
        for run in track(_living(runs), "load" if load else "start processes"):
            try:
                if load:
                    run.info = _load_into(run.worker, run.variant, settings)
                else:
                    run.worker.ready()
            except WorkerError as error:
                run.fail(str(error))


def _load_into(worker: Worker, variant: Variant, settings: Row) -> Row:
    return worker.load(
        variant.checkpoint, attention=variant.attention, compute=variant.compute, engine=variant.engine, **settings
    )


def _latency(runs: list[_Run], batch: int, samples: int, seconds: float, rounds: int, *, first: bool) -> None:
    """Interleaved rounds of one batch size. Without the first batch size a variant has no latency, and has failed."""

    def attempt(run: _Run, what: Callable[[], object]) -> None:
        try:
            what()
        except WorkerError as error:
            run.latency_failures[batch] = str(error)
            run.rounds_ms.pop(batch, None)
            if first:
                run.fail(str(error))

    for run in runs:
        attempt(run, lambda run=run: run.worker.warm_up(batch))  # type: ignore[misc]
    share, share_s = math.ceil(samples / rounds), seconds / rounds
    turns = [run for turn in range(rounds) for run in _rotated(runs, turn)]
    for run in track(turns, f"latency, batch {batch}"):
        if batch not in run.latency_failures:
            attempt(run, lambda run=run: run.rounds_ms[batch].append(run.worker.latency(batch, share, share_s)))  # type: ignore[misc]
    if first:
        for run in _living(runs):
            run.memory = run.worker.memory()


def _throughput(runs: list[_Run], batches: Sequence[int], seconds: float) -> None:
    """The sweep; the variants of one batch size stand next to each other in time."""
    turns = [(batch, run) for turn, batch in enumerate(batches) for run in _rotated(runs, turn)]
    for batch, run in track(turns, "throughput"):
        if any("reason" in entry for entry in run.throughput):
            continue
        entry: Row = {"batch_size": batch, "images_per_s": None}
        try:
            run.throughput.append(entry | run.worker.throughput(batch, seconds))
        except WorkerError as error:
            run.throughput.append(entry | {"reason": str(error)})
            say(f"{run.variant.name}: batch {batch}: {error}")


def _profile(stack: ExitStack, start: Callable[[], Worker], run: _Run, settings: Row, batches: Sequence[int]) -> None:
    """Kernels of each batch size that could be timed; in a new process if the sweep has killed the old one."""
    try:
        if not run.worker.alive:
            run.worker = stack.enter_context(start())
            _load_into(run.worker, run.variant, settings)
        for batch in batches:
            if batch not in run.latency_failures:
                run.kernels.append({"batch_size": batch, **run.worker.profile(batch)})
    except WorkerError as error:
        say(f"{run.variant.name}: no kernel profile: {error}")


def _rotated(runs: list[_Run], turn: int) -> list[_Run]:
    at = turn % len(runs) if runs else 0
    return runs[at:] + runs[:at]


def _raw(run: _Run) -> Row:
    """Every sample in milliseconds, in the order taken; how many rounds, and how many samples each of them gave."""
    return {
        "rounds": max((len(rounds) for rounds in run.rounds_ms.values()), default=0),
        "latency_ms": {str(batch): [ms for taken in rounds for ms in taken] for batch, rounds in run.rounds_ms.items()},
        "samples_per_round": {str(batch): [len(taken) for taken in rounds] for batch, rounds in run.rounds_ms.items()},
    }


def _row(run: _Run) -> Row:
    variant, info = run.variant, run.info
    row: Row = {
        "name": variant.name,
        "checkpoint": str(variant.checkpoint),
        "status": "ok" if run.failure is None else "failed",
        "reason": run.failure,
        "attention": info.get("attention", variant.attention),
        "compute": info.get("compute", variant.compute),
        "engine": info.get("engine", variant.engine),
        **{
            key: info.get(key)
            for key in ("format", "device", "architecture", "image_size", "parameters", "load_s", "threads")
        },
        **dict.fromkeys(("attention_ran", "latency", "throughput", "memory", "kernels")),
        "latency_by_batch": [],
        "throughput_by_batch": [],
        "kernels_by_batch": [],
        "raw": None,
    }
    if run.failure is not None:
        return row
    raw = _raw(run)
    entries = [latency_entry(int(batch), taken) for batch, taken in raw["latency_ms"].items()]
    entries += [{"batch_size": batch, "reason": reason} for batch, reason in run.latency_failures.items()]
    swept = [entry for entry in run.throughput if entry["images_per_s"] is not None]
    best = max(swept, key=lambda entry: entry["images_per_s"], default=None)
    return row | {
        "latency": entries[0],
        "latency_by_batch": entries,
        "throughput": best and {key: best[key] for key in ("batch_size", "images_per_s")},
        "throughput_by_batch": run.throughput,
        "memory": {
            "disk_bytes": disk_bytes(variant.checkpoint),
            **(run.memory or {}),
            "before_bytes": info.get("before_bytes"),
        },
        "kernels": run.kernels[0] if run.kernels else None,
        "kernels_by_batch": run.kernels,
        "attention_ran": run.kernels[0]["attention_ran"] if run.kernels else None,
        "raw": raw,
    }


def _check(
    variants: Sequence[Variant],
    batches: Sequence[int],
    batch_sizes: Sequence[int],
    samples: int,
    seconds: float,
    rounds: int,
) -> None:
    names = [variant.name for variant in variants]
    if not names:
        raise PetaliteError("nothing to measure: name at least one variant")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PetaliteError(f"two variants are named '{twice[0]}'; give each a name of its own")
    for one in variants:
        check_words(attention=one.attention, compute=one.compute, engine=one.engine)
    if not batch_sizes or min(batches) < 1:
        raise PetaliteError(f"batch sizes must be whole numbers of at least 1, got {list(batches)}")
    if samples < 1 or rounds < 1 or seconds < 0:
        raise PetaliteError(
            f"samples and rounds must be at least 1, seconds at least 0; got {samples}, {rounds}, {seconds}"
        )
