"""Short measured trials between ways to compute the same thing, each held once for all: in memory and on disk.

    trials = trials_for(device)
    trials.choose("fp8 256x1024x4096", {"torch": run_torch, "petalite": run_ours})      # 'petalite', after some ms

Which kernel is fastest depends on the shape and on the GPU, and no rule of thumb holds for both long. What was found is
kept in `trials/` of the cache folder (`$PETALITE_CACHE`, else ~/.cache/petalite), in a file for each GPU and version of
PyTorch, Triton and Petalite. Every candidate must also agree with the first one: a kernel that computes something else
on some GPU loses, however quick it is.

For GPUs that Petalite has been measured on, the choices for common models come with it (`known/`, made by
`benchmarks/gpu_trials.py`), so that a first start there is spent on compiling alone. They are names only: one that is not
among the candidates, or does not run, is tried anew.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch

from petalite import __version__
from petalite.console import say
from petalite.engine.graphs import CAPTURE
from petalite.engine.kernels.launching import compile_together, compiling
from petalite.errors import PetaliteError
from petalite.files import cache_dir, read_json, write_json

Run = Callable[[], Any]
#: Microseconds of each candidate.
Times = dict[str, float]

ROUNDS = 5
#: A candidate this much slower than the quickest in the first round is not timed again.
_HOPELESS = 2.0
#: A later candidate has to be quicker than an earlier one by this factor: ties go to the first.
_BETTER = 0.98
#: Runs in one graph: as many as a large model has blocks.
_RUNS = 24


class Trials:
    """What was found on one kind of device: key -> the best candidate's name.

    path: the file to remember them in; None keeps them in memory. measure: microseconds of each candidate.
    known: what was found elsewhere on such a device, key -> name. prepare: is given the candidates before they run.
    """

    def __init__(
        self,
        path: Path | None,
        measure: Callable[[Mapping[str, Run]], Times],
        known: Mapping[str, str] | None = None,
        prepare: Callable[[Collection[Run]], None] | None = None,
    ) -> None:
        self.path, self.measure, self.said, self.known, self.prepare = path, measure, False, known or {}, prepare
        self.found: dict[str, dict[str, Any]] = {}
        if path is not None:
            self.found, problem = _read(path)
            if problem:
                say(f"trials of kernels are made again: {problem}")

    def choose(self, key: str, candidates: Mapping[str, Run], agree: Callable[[Any, Any], bool] | None = None) -> str:
        """The quickest of `candidates`, by a trial where `key` has none yet.

        The first candidate is the reference: what `agree(its result, another's)` refuses is left out, as is what raises.
        Raises PetaliteError when none can run, and torch.OutOfMemoryError where there is no room to try.
        """
        names = list(candidates)
        if len(names) == 1:
            return names[0]
        known = self.found.get(key, {})
        if known.get("best") in names:
            return str(known["best"])
        if (name := self.known.get(key)) in names and _working({name: candidates[name]}, None)[0]:
            return name
        if not self.said:
            self.said = True
            say(f"trying kernels for shapes that are new on this device ({key}, …); kept in {self.path or 'memory'}")
        if self.prepare is not None:
            self.prepare(candidates.values())
        working, reasons = _working(candidates, agree)
        if not working:
            raise PetaliteError(f"no way to compute {key} runs here: {next(iter(reasons.values()))}")
        times = self.measure(working) if len(working) > 1 else dict.fromkeys(working, 0.0)
        best = _best(times)
        self.found[key] = {"best": best, "us": times, **({"left_out": reasons} if reasons else {})}
        self._write()
        return best

    def expect(self, key: str, candidates: Mapping[str, Run]) -> str:
        """What `choose` would choose as far as is known without a trial; else the first. What it would run to see that it
        works is run."""
        best, known = self.found.get(key, {}).get("best"), self.known.get(key)
        if best in candidates:
            return str(best)
        if known is None or known not in candidates:
            return next(iter(candidates))
        _working({known: candidates[known]}, None)
        return known

    def _write(self) -> None:
        if self.path is None:
            return
        try:
            others, _ = _read(self.path)  # another process may have found some meanwhile
            write_json(self.path, {**others, **self.found})
        except (PetaliteError, OSError) as error:
            say(f"trials of kernels are not kept: {error}")
            self.path = None


class Choices:
    """What one engine has chosen so far, on one device."""

    def __init__(self, trials: Trials, device: torch.device) -> None:
        self.trials, self.device = trials, device
        self._chosen: dict[str, str] = {}

    def choose(
        self, key: str, ways: Callable[[], Mapping[str, Run]], agree: Callable[[Any, Any], bool] | None = None
    ) -> str:
        """The name of the way for `key`, by a trial where there was none; `ways` is asked only then.

        While a CUDA graph is recorded nothing can be timed: then it is the first way, and the trial comes another time.
        Nor while kernels are compiled only: then it is what will be chosen, as far as that is known.
        """
        if key not in self._chosen:
            candidates = ways()
            if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return next(iter(candidates))
            if compiling():
                return self.trials.expect(key, candidates)
            self._chosen[key] = self.trials.choose(key, candidates, agree)
        return self._chosen[key]

    def hold(self, key: str, name: str) -> None:
        """From now on `name` for `key`, which has to be one of its ways; what a graph has recorded stays as it is."""
        self._chosen[key] = name

    def report(self) -> dict[str, str]:
        """The chosen names by key."""
        return dict(self._chosen)


@functools.cache
def trials_for(device: torch.device) -> Trials:
    """The trials of a GPU, shared by all that runs on it in this process."""
    device_name = torch.cuda.get_device_name(device)
    words = (device_name, f"torch-{torch.__version__}", f"triton-{_triton_version()}",
             f"petalite-{__version__}")  # fmt: skip
    name = re.sub(r"[^\w.+-]+", "-", "_".join(words))
    path = cache_dir() / "trials" / f"{name}.json"
    prepare = functools.partial(compile_together, device=device)
    return Trials(path, functools.partial(time_on_gpu, device=device), known(device_name), prepare)


def known(device_name: str) -> dict[str, str]:
    """The choices that come with Petalite for GPUs of this name; none where it has not been measured."""
    path = known_path(device_name)
    if not path.exists():
        return {}
    choices: dict[str, str] = read_json(path)["choices"]
    return choices


def known_path(device_name: str) -> Path:
    """Where the choices for GPUs of this name lie: `known/NVIDIA-H200.json` beside this module."""
    return Path(__file__).parent / "known" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', device_name)}.json"


def time_on_gpu(runs: Mapping[str, Run], device: torch.device) -> Times:
    """Median microseconds on the GPU of each run, many of them in a CUDA graph as in the engine, all in turn.

    The runs of a graph follow each other without the host's gaps, which would hide what a short kernel takes. What a run
    reads anew each time (weights, which in a model of many layers no cache holds) it has to change itself.
    """
    graphs, taken = {}, {name: list[float]() for name in runs}
    with torch.cuda.device(device), CAPTURE:
        stream = torch.cuda.Stream(device)  # PyTorch's own for recording is of the first device that recorded
        for name, run in runs.items():
            graphs[name] = _recorded(run, stream)
        for _ in range(ROUNDS):
            # all of a round is queued before the first of its times is read
            events = {name: _timed(graphs[name]) for name in taken}
            torch.cuda.current_stream(device).synchronize()  # alone: another thread may be recording a graph
            for name, (start, end) in events.items():
                taken[name].append(1e3 * start.elapsed_time(end) / _RUNS)
            quickest = min(min(times) for times in taken.values())
            taken = {name: times for name, times in taken.items() if min(times) <= _HOPELESS * quickest}
    return {name: median(times) for name, times in taken.items()}


def _recorded(run: Run, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for _ in range(_RUNS):
            run()
    return graph


def time_on_cpu(runs: Mapping[str, Run]) -> Times:
    """Median microseconds of each run on the host's clock, in rounds in which all take turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(1e6 * (time.perf_counter() - start))
    return {name: median(times) for name, times in taken.items()}


def _timed(graph: torch.cuda.CUDAGraph) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    return start, end


def _working(candidates: Mapping[str, Run], agree: Callable[[Any, Any], bool] | None) -> tuple[dict[str, Run], Any]:
    """The candidates that run and agree with the first that does, and for the others the reason."""
    working: dict[str, Run] = {}
    reasons: dict[str, str] = {}
    reference: Any = None
    for name, run in candidates.items():
        try:
            result = run()
            wrong = bool(working) and agree is not None and not agree(reference, result)
        except torch.OutOfMemoryError:
            raise  # a smaller batch may fit
        except Exception as error:  # a kernel that cannot be compiled raises whatever its compiler raises
            lines = str(error).strip().splitlines() or ["no message"]
            reasons[name] = f"{type(error).__name__}: {lines[0][:200]}"
            continue
        if wrong:
            reasons[name] = "its result differs"
            continue
        if not working:
            reference = result
        working[name] = run
    return working, reasons


def _best(times: Times) -> str:
    best = next(iter(times))
    for name, value in times.items():
        if value < _BETTER * times[best]:
            best = name
    return best


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """What a file holds, and what is wrong with it, if anything: then it holds nothing."""
    if not path.exists():
        return {}, ""
    try:
        value = read_json(path)
    except PetaliteError as error:
        return {}, str(error)
    entries = value.values() if isinstance(value, dict) else (None,)
    if not all(isinstance(entry, dict) and isinstance(entry.get("best"), str) for entry in entries):
        return {}, f"{path} does not hold trials"
    return value, ""


def _triton_version() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "none"
