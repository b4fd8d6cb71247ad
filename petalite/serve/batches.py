"""Dynamic batching: images wait for each other, but only for those that are on their way and only for so long.

    batcher = Batcher(compute, max_batch=8, max_wait_s=0.002, coming=lambda: decoding > 0)
    batcher.put(item)          # from any thread; `compute([item, …])` is called in the batcher's own

While the model computes a batch, the next one gathers by itself. A wait costs time only where it can win something: an
image that comes alone, with nothing behind it, is computed at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Something that brings `images` images."""

    @property
    def images(self) -> int:
        """How many."""


T = TypeVar("T", bound=Sized)


class Batcher(Generic[T]):
    """A queue and a thread that empties it in batches of at most `max_batch` images.

    compute: what is done with a batch; it must not raise. coming: whether something is being decoded that may join.
    """

    def __init__(
        self, compute: Callable[[list[T]], None], max_batch: int, max_wait_s: float, coming: Callable[[], bool]
    ) -> None:
        self._compute, self._max_batch, self._max_wait_s, self._coming = compute, max_batch, max_wait_s, coming
        self._items: deque[tuple[float, T]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Queue an item of at most `max_batch` images."""
        with self._changed:
            self._items.append((time.monotonic(), item))
            self._changed.notify()

    def poke(self) -> None:
        """Look again whether anything is coming."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Compute what is queued, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._gather():
            self._compute(batch)

    def _gather(self) -> list[T]:
        """The next batch; empty when closed and nothing is left."""
        with self._changed:
            while not self._items:
                if self._closed:
                    return []
                self._changed.wait()
            until = self._items[0][0] + self._max_wait_s
            while self._waiting() < self._max_batch and not self._closed and self._coming():
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            batch: list[T] = []
            images = 0
            while self._items and (images := images + self._items[0][1].images) <= self._max_batch:
                batch.append(self._items.popleft()[1])
            return batch

    def _waiting(self) -> int:
        return sum(item.images for _, item in self._items)
