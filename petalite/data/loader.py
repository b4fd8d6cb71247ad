"""Files -> batches of uint8 pixels, read by worker processes while the model computes.

    for batch in load_batches(paths, preprocess, batch_size=64):
        logits = classifier.logits(batch.pixels)       # rows belong to paths[batch.indices]
        for index, message in batch.errors: ...        # files that could not be read, the rest goes on

    for pixels, targets in train_batches(samples, augment, order, seeds, batch_size=64): ...

The order of batches never depends on the number of workers, and nothing here draws from the global random state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from petalite.data.augment import Augment
from petalite.data.images import ImageError, decode
from petalite.data.preprocess import Preprocess
from petalite.data.samples import Sample
from petalite.data.workers import starting_workers, usable_workers, worker_context
from petalite.errors import PetaliteError

# what a worker sends: indices, targets, pixels of the images that could be read, and (index, message) of the others.
# NumPy arrays travel through a pipe; tensors would go through /dev/shm, which containers limit to 64 MB by default
_Parcel: TypeAlias = "tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, str]]]"


@dataclass
class Batch:
    """The images of a batch that could be read, and why the others could not."""

    indices: torch.Tensor  # int64, (n,): positions in the list of paths
    pixels: torch.Tensor  # uint8, (n, 3, H, W)
    errors: list[tuple[int, str]] = field(default_factory=list)  # (position in the list of paths, one line)


def load_batches(
    paths: Sequence[Path], preprocess: Preprocess, batch_size: int, workers: int | None = None
) -> Iterator[Batch]:
    """Read `paths` in order, `batch_size` files a batch (the last one may be smaller).

    `workers`: processes that read; None takes the available cores (at most 8), 0 reads in this process. A file that
    cannot be read is an entry in `Batch.errors`, never an exception.
    """
    augment = Augment(preprocess, policy="none")
    samples = [Sample(Path(path), 0) for path in paths]
    for indices, _, pixels, errors in _parcels(_Files(samples, augment), range(len(samples)), batch_size, workers):
        yield Batch(torch.from_numpy(indices), torch.from_numpy(pixels), errors)


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
    if len(order) != len(seeds):
        raise ValueError(f"train_batches needs a seed for each of the {len(order)} images, not {len(seeds)}")
    if augment.policy != "none":
        _ = augment.transform  # imported and built here once, rather than in each worker
    files = _Files(samples, augment, order, seeds)
    for _, targets, pixels, errors in _parcels(files, range(len(order)), batch_size, workers):
        if errors:
            raise PetaliteError(f"{errors[0][1]}; remove it from the training images")
        yield torch.from_numpy(pixels), torch.from_numpy(targets)


class _Files(Dataset[_Parcel]):
    """A batch per item: PyTorch asks for lists of positions and gets each as one parcel."""

    def __init__(
        self,
        samples: Sequence[Sample],
        augment: Augment,
        order: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        # arrays rather than lists of objects: forked workers would copy a list's pages as they count references
        self.paths = np.array([str(sample.path) for sample in samples])
        self.targets = np.array([sample.target for sample in samples], dtype=np.int64)
        self.order = np.arange(len(samples)) if order is None else np.array(order, dtype=np.int64)
        self.seeds = np.zeros(len(samples), dtype=np.int64) if seeds is None else np.array(seeds, dtype=np.int64)
        self.augment = augment

    def __getitem__(self, positions: list[int]) -> _Parcel:
        height, width = self.augment.preprocess.size
        pixels = np.empty((len(positions), 3, height, width), dtype=np.uint8)
        read: list[int] = []
        errors: list[tuple[int, str]] = []
        for position in positions:
            index = int(self.order[position])
            try:
                image = decode(str(self.paths[index]))
            except ImageError as error:
                errors.append((index, str(error)))
                continue
            pixels[len(read)] = self.augment(image, int(self.seeds[position])).numpy()
            read.append(index)
        indices = np.array(read, dtype=np.int64)
        return indices, self.targets[indices], pixels[: len(read)], errors


def _parcels(files: _Files, positions: Sequence[int], batch_size: int, workers: int | None) -> Iterator[_Parcel]:
    if batch_size < 1:
        raise PetaliteError(f"a batch of {batch_size} images is not possible; give at least 1")
    batches = [list(positions[start : start + batch_size]) for start in range(0, len(positions), batch_size)]
    workers = min(usable_workers(workers), len(batches))
    loader: Iterable[_Parcel] = DataLoader(
        files,
        batch_size=None,  # the sampler gives whole batches
        sampler=batches,
        num_workers=workers,
        multiprocessing_context=worker_context() if workers else None,
        generator=torch.Generator(),  # or the iterator would draw a number from the global one
        collate_fn=_as_is,
    )
    with starting_workers():
        iterator = iter(loader)
    try:
        yield from iterator
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        why = str(error).strip().partition("\n")[0].rstrip(". ")
        raise PetaliteError(f"a process that reads images ended: {why}; try fewer workers, or 0") from error


def _as_is(parcel: Any) -> Any:
    return parcel
