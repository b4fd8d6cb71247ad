"""`petalite predict --on ray`: the same parts, computed by a Ray cluster, with Ray Data.

    ray start --head                                   # or RAY_ADDRESS=…; without a cluster one is started here
    petalite predict runs/int8 "shards/*.tar" --on ray --out predictions.parquet --resume

The driver lists units and writes the parts that come back; it needs no GPU. Each actor loads the engine once, reads and
decodes whole units (a shard, a chunk of files) in processes of its own, and returns their parts. A worker that dies is
replaced and its units are computed again; a driver that dies goes on with `--resume`, here or without a cluster. The
checkpoint and the images have to lie where every node sees them under the same path; the output only where the driver is.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petalite.checkpoint import read_checkpoint
from petalite.console import say
from petalite.engine import Classifier
from petalite.errors import PetaliteError
from petalite.prediction.extras import needed
from petalite.prediction.parts import Part, Parts, encoded
from petalite.prediction.passes import predicted
from petalite.prediction.tables import table_of

if TYPE_CHECKING:
    from petalite.prediction.run import Job, Ran

#: Cores of an engine on CPUs: several small engines do more images a second than one large one.
CPU_CORES = 2
#: Cores that decode for one GPU, at most.
GPU_CORES = 8


@dataclass(frozen=True)
class Shape:
    """How the cluster is divided: so many engines, and what each of them gets."""

    engines: int
    cores: int
    gpus: int

    @classmethod
    def of(cls, resources: dict[str, float], device: str, threads: int | None) -> Shape:
        """An engine on each GPU with its share of the cores, or on every few cores (`threads`, else 2) without GPUs.

        resources: as `ray.cluster_resources()` gives them. Raises PetaliteError where the cluster has no core.
        """
        cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        if cores < 1:
            raise PetaliteError("the Ray cluster has no CPU core to compute on; start its nodes with --num-cpus")
        if gpus and device != "cpu":
            return cls(gpus, max(1, min(GPU_CORES, cores // gpus)), 1)
        each = min(threads or CPU_CORES, cores)
        return cls(cores // each, each, 0)


class Engine:
    """In an actor: a classifier that is loaded once, and answers unit after unit."""

    def __init__(self, job: Job, ending: str) -> None:
        self.job, self.table = job, table_of(Path(f"part{ending}"))
        self.classifier: Classifier = job.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Ray Data's face: units as pickles in; out come parts, each with what ran."""
        info = self.classifier.info.as_dict()
        answers = [pickle.dumps((self.part(pickle.loads(unit)), info)) for unit in batch["unit"]]
        return {"number": list(batch["number"]), "answer": answers}

    def part(self, unit: Any) -> Part:
        """A unit's part."""
        batches = predicted(self.classifier, [(0, unit)], self.job.batch_size, self.job.workers)
        return encoded(unit, (row for _, rows in batches for row in rows), self.table)


def run_on_ray(job: Job, parts: Parts, resume: bool, advance: Callable[[int], None]) -> Ran:
    """Add the parts that are missing; seconds count from the moment that the cluster is asked for.

    Raises PetaliteError when Ray is missing or what it runs fails; the parts that were done are kept.
    """
    from petalite.prediction.run import Ran

    ray = needed("ray", "ray", "clusters")
    data = needed("ray.data", "ray", "clusters")
    read_checkpoint(job.checkpoint)  # what is wrong with it is said before anything is started
    parts.open(resume)
    total, missing = 0, []
    for number, unit in job.units():
        total = number + 1
        if not parts.holds(number, unit):
            missing.append({"number": number, "unit": pickle.dumps(unit)})
    started = time.perf_counter()
    if not missing:
        return Ran(total, None, started)
    info: dict[str, Any] = {}
    # Ray tells of a worker that died on stdout, which is for results
    with redirect_stdout(sys.stderr), connected(ray), _explained(parts):
        shape = Shape.of(ray.cluster_resources(), job.device, job.threads)
        engines = min(shape.engines, len(missing))
        say(f"predict: {len(missing):,} parts on {engines} Ray actors of {shape.cores} cores and {shape.gpus} GPUs")
        # decoding in the engine's own process would let an image that crashes its decoder end the engine, again and again
        job = replace(
            job, threads=job.threads or (None if shape.gpus else shape.cores), workers=job.workers or shape.cores
        )
        done = data.from_items(missing, override_num_blocks=len(missing)).map_batches(
            Engine,
            fn_constructor_args=(job, parts.table.ending),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=engines, max_tasks_in_flight_per_actor=2),
            num_cpus=shape.cores,
            num_gpus=shape.gpus,
        )
        for row in done.iter_rows():
            part, ran = pickle.loads(row["answer"])
            if not info or ran != info:  # nodes may differ in what they run
                parts.settle(job.settings(ran))
                info = ran
            parts.add(int(row["number"]), part)
            advance(part.images)
    return Ran(total, info, started)


@contextmanager
def connected(ray: Any) -> Iterator[None]:
    """The cluster that this process is connected to, that RAY_ADDRESS names or that runs here, or a new one."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _explained(parts: Parts) -> Iterator[None]:
    """Errors of the cluster as one line: the PetaliteError that a worker raised, or the first line of what Ray says."""
    try:
        yield
    except PetaliteError as error:
        own = _raised_by_us(error)
        raise PetaliteError(f"{own or error}") from error
    except Exception as error:  # Ray's own, of many kinds
        own = _raised_by_us(error)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PetaliteError(f"{own or f'the Ray cluster failed: {lines[-1].strip()}'}{parts.kept()}") from error


def _raised_by_us(error: BaseException) -> str | None:
    """The message of the PetaliteError that Ray has wrapped, if it is one."""
    seen: set[int] = set()
    link: Any = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if type(link).__module__ == "petalite.errors":
            return str(link)
        link = getattr(link, "cause", None) or link.__cause__
    return None
