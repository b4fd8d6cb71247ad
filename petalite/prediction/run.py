"""`petalite predict` on this machine: what is left of the sources, through the classifier, into parts, into one file.

summary = predict("runs/flowers/checkpoints/int8", ["photos/", "extra/*.jpg"], out="predictions.csv")
summary["images_per_s"]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any

from petalite.console import say
from petalite.engine import Classifier, load
from petalite.errors import PetaliteError, did_you_mean
from petalite.files import sha256
from petalite.prediction.parts import Parts, encoded
from petalite.prediction.passes import predicted
from petalite.prediction.progress import progress
from petalite.prediction.rows import Row, printable
from petalite.prediction.sources import Unit, check, units
from petalite.prediction.tables import Table, table_of

PLACES = ("local", "ray")
#: The gallery's caption counts the images up to here; beyond, the evenly spaced sample is all that it gets to see.
_IN_MEMORY = 10_000


@dataclass(frozen=True)
class Job:
    """What is to be predicted, with what; the options are those of `petalite.engine.load`."""

    checkpoint: Path
    sources: tuple[str, ...]
    batch_size: int
    device: str
    attention: str
    compute: str
    engine: str
    workers: int | None
    threads: int | None

    def load(self) -> Classifier:
        """The classifier, ready to run."""
        return load(self.checkpoint, self.device, self.attention, self.compute, self.threads, self.engine)

    def units(self) -> Iterator[tuple[int, Unit]]:
        """Units with their numbers."""
        return enumerate(units(self.sources, self.batch_size))

    def settings(self, info: dict[str, Any]) -> dict[str, Any]:
        """What rows depend on besides the images: a run that goes on has to have the same. `info`: the classifier's."""
        files = ("config.json", "model.safetensors", "plan.json")
        digests = [sha256(self.checkpoint / name) for name in files if (self.checkpoint / name).exists()]
        ran = {name: info[name] for name in ("engine", "attention", "compute")}
        return {"checkpoint": ", ".join(digests), "batch_size": self.batch_size, **ran}

    def count(self) -> int | None:
        """How many images there are; None for a list on stdin, which can be read only once."""
        if "-" in self.sources:
            return None
        return sum(sum(1 for _ in unit.items()) for _, unit in self.units())


@dataclass(frozen=True)
class Ran:
    """What a runner has done: how many units there are, what ran (the classifier's info; None where nothing was left to
    do), and when images began to flow."""

    units: int
    info: dict[str, Any] | None
    started: float


#: Adds the parts that are missing, calling back with the number of images that are done; the bool is `resume`.
Runner = Callable[[Job, Parts, bool, Callable[[int], None]], Ran]


def predict(
    checkpoint: str | Path,
    sources: Iterable[str | Path],
    out: str | Path,
    *,
    gallery: str | Path | None = None,
    device: str = "auto",
    attention: str = "auto",
    compute: str = "auto",
    engine: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
    threads: int | None = None,
    resume: bool = False,
    force: bool = False,
    on: str = "local",
) -> dict[str, Any]:
    """Write the predictions of all images that `sources` name, in their order, to `out`: .csv, .jsonl or .parquet.

    sources: files, folders, globs, tar shards, CSV and Parquet files with a column `path`, `-` for a list on stdin.
    gallery: also write a PNG of sample predictions there. workers: processes that decode, of each engine.
    resume: go on with what a killed run of the same sources left, if anything. force: replace what is there. on: `local`,
    or `ray` for a Ray cluster. `target` is filled where the source names the class, or an image lies in a folder that is
    one of the checkpoint's classes. Returns counts, seconds and images/s (from the files to the output; without loading,
    but for a cluster). Raises PetaliteError when a source names no image.
    """
    if on not in PLACES:
        raise PetaliteError(f"unknown place '{on}' to run on{did_you_mean(on, PLACES)}; known: {', '.join(PLACES)}")
    out = Path(out)
    parts = Parts(out, table_of(out))
    parts.check_may_write(resume, force)
    job = Job(
        Path(checkpoint), tuple(map(str, sources)), batch_size, device, attention, compute, engine, workers, threads
    )
    check(job.sources)
    if resume and parts.finished():
        return _complete(job, out, parts.table)
    run = _local
    if on == "ray":
        from petalite.prediction.cluster import run_on_ray as run

    def left() -> int | None:
        count = job.count()
        return None if count is None else count - parts.resumed

    try:
        with progress(left) as advance:
            ran = run(job, parts, resume, advance)
        if ran.units == 0:
            raise PetaliteError("no images to predict; the list is empty")
        images, errors = parts.images, parts.errors
        parts.join(ran.units)
    finally:
        parts.drop_if_empty()
    seconds = time.perf_counter() - ran.started
    if gallery is not None:
        _write_gallery(parts.table, out, images, errors, Path(gallery))
    rate = (images - parts.resumed) / seconds
    summary = {
        "images": images,
        "errors": errors,
        "resumed": parts.resumed,
        "seconds": round(seconds, 3),
        "images_per_s": round(rate, 2),
        "out": str(out),
        "info": ran.info,
    }
    before = f" ({parts.resumed:,} of them before)" if parts.resumed else ""
    say(f"predict: {images:,} images{before}, {errors:,} unreadable, {rate:,.1f} images/s -> {out}")
    return summary


def _local(job: Job, parts: Parts, resume: bool, advance: Callable[[int], None]) -> Ran:
    """On this machine, in this process."""
    classifier = job.load()
    parts.open(resume)
    parts.settle(job.settings(classifier.info.as_dict()))
    started = time.perf_counter()
    total = 0
    under_way: dict[int, Unit] = {}

    def missing() -> Iterator[tuple[int, Unit]]:
        nonlocal total
        for number, unit in job.units():
            total = number + 1
            if not parts.holds(number, unit):
                under_way[number] = unit
                yield number, unit

    def rows_of_unit(batches: Iterable[tuple[int, list[Row]]]) -> Iterator[Row]:
        for _, rows in batches:
            yield from rows
            advance(len(rows))

    batches = predicted(classifier, missing(), job.batch_size, job.workers)
    for number, group in groupby(batches, key=itemgetter(0)):
        parts.add(number, encoded(under_way.pop(number), rows_of_unit(group), parts.table))
    return Ran(total, classifier.info.as_dict(), started)


def _complete(job: Job, out: Path, table: Table) -> dict[str, Any]:
    """The summary of an output that a run has ended with. Raises PetaliteError where it is one of other images."""
    images = errors = 0
    items = (item for _, unit in job.units() for item in unit.items())
    for row, item in zip_longest(table.read(out), items):
        if row is None or item is None or row["path"] != printable(str(item.source)):
            raise PetaliteError(
                f"{out} is complete, but of other images than the sources name now; --force replaces it"
            )
        images += 1
        errors += bool(row["error"])
    say(f"predict: {out} is complete: {images:,} images, {errors:,} unreadable")
    nothing = {"seconds": 0.0, "images_per_s": 0.0}
    return {"images": images, "errors": errors, "resumed": images, **nothing, "out": str(out), "info": None}


def _write_gallery(table: Table, out: Path, images: int, errors: int, path: Path) -> None:
    """Sample photos with their answers. Of many images only those that it may show are read into memory."""
    from petalite.report.gallery import LIMIT, write_gallery

    step = max(1, (images - errors) // LIMIT)
    readable = (row for row in table.read(out) if not row["error"])
    write_gallery(
        table.read(out) if images <= _IN_MEMORY else islice(readable, step // 2, None, step), path, total=images
    )
