"""Images -> batches of uint8 pixels, read by worker processes while the model computes.

    for batch in load_batches(paths, preprocess, batch_size=64):
        logits = classifier.logits(batch.pixels)       # rows belong to paths[batch.indices]
        for index, message in batch.errors: ...        # files that could not be read, the rest goes on

    for batch in read_batches(lists, preprocess): ...  # the same for lists that are made on the way, of whatever length
    for parcel in read_parcels(lists, preprocess): ...  # the same as arrays: nothing of PyTorch is imported for it
    for pixels, targets in train_batches(samples, augment, order, seeds, batch_size=64): ...

The order of batches never depends on the number of workers, and nothing here draws from the global random state. An
image that crashes its decoder, and with it the process that reads, is an error as any other: it costs that image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from petalite.data.augment import Augment
from petalite.data.images import ImageError, decode
from petalite.data.preprocess import Pixels, Preprocess
from petalite.data.samples import Sample, Stored
from petalite.data.workers import in_order, usable_workers
from petalite.errors import PetaliteError

if TYPE_CHECKING:
    import torch

_T = TypeVar("_T")
# a batch to read: images, each with the seed of its augmentation
_Job: TypeAlias = "list[tuple[str | Stored, int]]"


class Parcel(NamedTuple):
    """What a worker sends: the images of a batch that could be read, and why the others could not.

    Arrays travel through a pipe; tensors would go through /dev/shm, which containers limit to 64 MB.
    """

    indices: NDArray[np.int64]  # (n,): positions in the job
    pixels: Pixels  # (n, 3, H, W)
    errors: list[tuple[int, str]]  # (position in the job, one line)


@dataclass
class Batch:
    """The same as tensors."""

    indices: torch.Tensor  # int64, (n,): positions in the list of images
    pixels: torch.Tensor  # uint8, (n, 3, H, W)
    errors: list[tuple[int, str]] = field(default_factory=list)  # (position in the list of images, one line)


def load_batches(
    paths: Sequence[Path], preprocess: Preprocess, batch_size: int, workers: int | None = None
) -> Iterator[Batch]:
    """Read `paths` in order, `batch_size` files a batch (the last one may be smaller).

    `workers`: processes that read; None takes the available cores (at most 8), 0 reads in this process. A file that
    cannot be read is an entry in `Batch.errors`, never an exception.
    """
    lists = ([str(path) for path in part] for part in in_parts(paths, batch_size))
    for number, batch in enumerate(read_batches(lists, preprocess, workers)):
        start = number * batch_size
        errors = [(start + index, message) for index, message in batch.errors]
        yield Batch(batch.indices + start, batch.pixels, errors)


def read_batches(
    lists: Iterable[Sequence[str | Stored]], preprocess: Preprocess, workers: int | None = None
) -> Iterator[Batch]:
    """A batch for each list of paths or stored images, in order; positions are those in its list.

    Lists are taken a few ahead of the batch that is asked for, so that they need not all exist. `workers` and errors as
    for `load_batches`.
    """
    import torch

    for indices, pixels, errors in read_parcels(lists, preprocess, workers):
        yield Batch(torch.from_numpy(indices), torch.from_numpy(pixels), errors)


def read_parcels(
    lists: Iterable[Sequence[str | Stored]], preprocess: Preprocess, workers: int | None = None
) -> Iterator[Parcel]:
    """What `read_batches` gives, as arrays."""
    augment = Augment(preprocess, policy="none")
    jobs = ([(source, 0) for source in sources] for sources in lists)
    for _, parcel in _parcels(augment, jobs, workers):
        yield parcel


def train_batches(
    samples: Sequence[Sample],
    augment: Augment,
    order: Sequence[int],
    seeds: Sequence[int],
    batch_size: int,
    workers: int | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Read `samples[order[0]]`, `samples[order[1]]`, … as (uint8 (n, 3, H, W), int64 targets (n,)).

    `seeds[i]` is the seed of the augmentation of the i-th image read, so that a caller who resumes passes the rest of
    both lists and gets the rest of the same batches. Raises PetaliteError naming the first file that cannot be read.
    """
    import torch

    if len(order) != len(seeds):
        raise ValueError(f"train_batches needs a seed for each of the {len(order)} images, not {len(seeds)}")
    if augment.policy != "none":
        _ = augment.transform  # imported and built here once, rather than in each worker
    positions = list(in_parts(range(len(order)), batch_size))
    jobs: Iterable[_Job] = ([(str(samples[order[at]].path), int(seeds[at])) for at in part] for part in positions)
    for part, (_, (_, pixels, errors)) in zip(positions, _parcels(augment, jobs, workers), strict=True):
        if errors:
            raise PetaliteError(f"{errors[0][1]}; remove it from the training images")
        targets = torch.tensor([samples[order[at]].target for at in part], dtype=torch.int64)
        yield torch.from_numpy(pixels), targets


def in_parts(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """`items` in lists of `size`, the last one perhaps smaller. Raises PetaliteError for a size below 1."""
    if size < 1:
        raise PetaliteError(f"a batch of {size} images is not possible; give at least 1")
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _parcels(augment: Augment, jobs: Iterable[_Job], workers: int | None) -> Iterator[tuple[_Job, Parcel]]:
    read = partial(_read, augment)
    workers = usable_workers(workers)
    if workers == 0:
        yield from ((job, read(job)) for job in jobs)
        return
    for job, parcel in in_order(read, jobs, workers):
        yield job, _one_by_one(augment, job) if parcel is None else parcel


def _read(augment: Augment, job: _Job) -> Parcel:
    height, width = augment.preprocess.size
    pixels = np.empty((len(job), 3, height, width), dtype=np.uint8)
    indices: list[int] = []
    errors: list[tuple[int, str]] = []
    for index, (source, seed) in enumerate(job):
        try:
            image = _image(source)
        except ImageError as error:
            errors.append((index, str(error)))
            continue
        pixels[len(indices)] = augment.pixels(image, seed)
        indices.append(index)
    return Parcel(np.array(indices, dtype=np.int64), pixels[: len(indices)], errors)


def _image(source: str | Stored) -> Image.Image:
    if isinstance(source, str):
        return decode(source)
    data = source.read()
    try:
        return decode(data)
    except ImageError as error:  # which calls bytes "the image"
        raise ImageError(f"{source}: {error}") from error


def _one_by_one(augment: Augment, job: _Job) -> Parcel:
    """What is left of a batch that ended the process that read it: each image is read in a process of its own."""
    found: list[np.ndarray] = []
    indices: list[int] = []
    errors: list[tuple[int, str]] = []
    for index, (single, parcel) in enumerate(in_order(partial(_read, augment), ([one] for one in job), 1)):
        if parcel is None:
            errors.append((index, f"{single[0][0]} crashes the image decoder"))
            continue
        read, pixels, problems = parcel
        indices += [index] * len(read)
        found.append(pixels)
        errors += [(index, message) for _, message in problems]
    height, width = augment.preprocess.size
    together = np.concatenate(found) if found else np.empty((0, 3, height, width), dtype=np.uint8)
    return Parcel(np.array(indices, dtype=np.int64), together, errors)
