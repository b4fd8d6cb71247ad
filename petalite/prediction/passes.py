"""Units through a classifier: read by worker processes, computed in batches that never depend on what came before.

    for number, rows in predicted(classifier, numbered_units, batch_size=32):   # the rows of a batch of that unit
        ...

A batch lies within one unit, so that a unit's rows are the same bits in an undisturbed run, in a resumed one, and on
another machine of the same kind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePath

import numpy as np

from petalite.data.loader import Parcel, read_parcels
from petalite.data.preprocess import Pixels
from petalite.data.samples import Stored
from petalite.engine import Classifier
from petalite.engine.classifier import Logits
from petalite.prediction.rows import Row, class_folders, row, rows_of
from petalite.prediction.shards import Item
from petalite.prediction.sources import Unit


def predicted(
    classifier: Classifier, units: Iterable[tuple[int, Unit]], batch_size: int, workers: int | None = None
) -> Iterator[tuple[int, list[Row]]]:
    """(the unit's number, the rows of a batch of it), in order; units and batches are taken as they are needed.

    workers: processes that read; None takes the available cores (at most 8), 0 reads in this process.
    """
    folders = class_folders(Path(classifier.info.checkpoint), classifier)
    sent: deque[tuple[int, Sequence[Item]]] = deque()  # batches that are being read
    read: deque[tuple[int, Sequence[Item], Parcel]] = deque()  # batches whose logits are still to come
    nothing = np.zeros((1, 3, *classifier.preprocess.size), np.uint8)

    def lists() -> Iterator[list[str | Stored]]:
        for number, unit in units:
            items = iter(unit.items())
            while batch := tuple(islice(items, batch_size)):
                sent.append((number, batch))
                yield [item.source for item in batch]

    def pixels() -> Iterator[Pixels]:
        for batch in read_parcels(lists(), classifier.preprocess, workers):
            read.append((*sent.popleft(), batch))
            # a batch of which nothing could be read computes a black image, so that each batch has its answer
            yield batch.pixels if len(batch.indices) else nothing

    for logits in classifier.stream_arrays(pixels()):
        number, items, batch = read.popleft()
        yield number, _rows(classifier, folders, items, batch, logits)


def _rows(
    classifier: Classifier, folders: dict[str, str], items: Sequence[Item], batch: Parcel, logits: Logits
) -> list[Row]:
    """The rows of a batch's items, in order."""
    targets = [target_of(item, folders, classifier.classes) for item in items]
    found = dict(batch.errors)
    rows = {index: row(str(items[index].source), targets[index], error=why) for index, why in found.items()}
    readable = batch.indices.tolist()
    named = rows_of(
        classifier,
        logits[: len(readable)],
        [str(items[index].source) for index in readable],
        [targets[index] for index in readable],
    )
    rows |= dict(zip(readable, named, strict=True))
    return [rows[index] for index in range(len(items))]


def target_of(item: Item, folders: dict[str, str], classes: Sequence[str]) -> str:
    """The name of an item's class: what its source says, or that of the class folder it lies in; "" where neither does.

    An index counts in the order of `classes`; a name may be a class's own or its folder's, and stays where it is neither.
    """
    target = item.target
    if target is None:
        return folders.get(PurePath(str(item.source)).parent.name, "")
    if isinstance(target, int):
        return classes[target] if target < len(classes) else str(target)
    return target if target in classes else folders.get(target, target)
