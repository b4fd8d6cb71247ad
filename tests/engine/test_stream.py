"""Batches in flight: order, how many, errors of the source and of the call, an early end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from petalite.engine.stream import Slot, overlapped, stream

CPU = torch.device("cpu")


def batches(count: int, size: int = 3) -> list[Tensor]:
    return [torch.full((size, 2), float(index)) for index in range(count)]


def doubled(batch: Tensor) -> Tensor:
    return 2 * batch.half()


class Late:
    """A slot whose device computes in a thread of its own, from memory that the next batch overwrites."""

    def __init__(self, seconds: float = 0.0, fails: int | None = None) -> None:
        self.memory = torch.zeros(0)
        self.seconds, self.fails = seconds, fails
        self.busy = self.closed = False
        self.thread: threading.Thread | None = None
        self.logits: Tensor | None = None

    def send(self, batch: Tensor) -> None:
        assert not self.busy, "used again before its answer was fetched"
        self.busy, self.logits, self.memory = True, None, batch.clone()
        self.thread = threading.Thread(target=self._compute)
        self.thread.start()

    def _compute(self) -> None:
        time.sleep(self.seconds)
        self.logits = 2 * self.memory

    def receive(self) -> Tensor:
        assert self.busy and self.thread is not None
        self.thread.join()
        self.busy = False
        assert self.logits is not None
        if self.fails is not None and self.logits[0, 0] == 2 * self.fails:
            raise RuntimeError("the device failed")
        return self.logits

    def close(self) -> None:
        if self.thread is not None:
            self.thread.join()
        self.closed = True


def firsts(logits: Iterator[Tensor]) -> list[float]:
    return [float(some[0, 0]) for some in logits]


def test_a_cpu_maps_each_batch_when_it_is_asked_for() -> None:
    taken: list[int] = []

    def source() -> Iterator[Tensor]:
        for index, batch in enumerate(batches(3)):
            taken.append(index)
            yield batch

    logits = stream(doubled, source(), CPU)
    assert taken == []
    first = next(logits)
    assert taken == [0]
    assert first.dtype == torch.float32
    assert torch.equal(first, torch.zeros(3, 2))
    assert firsts(logits) == [2.0, 4.0]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_batch_is_answered_once_and_in_order(count: int, depth: int) -> None:
    slots = [Late(seconds=0.004 if place % 2 else 0.0) for place in range(depth)]
    assert firsts(overlapped(batches(count), slots)) == [2.0 * index for index in range(count)]
    assert all(slot.closed for slot in slots)


def test_no_more_batches_are_read_than_there_are_slots() -> None:
    ahead: list[int] = []
    answered = 0

    def source() -> Iterator[Tensor]:
        for index, batch in enumerate(batches(12)):
            ahead.append(index + 1 - answered)
            yield batch

    for _ in overlapped(source(), [Late() for _ in range(3)]):
        answered += 1
    assert max(ahead) == 3


def test_the_source_is_read_while_the_device_computes() -> None:
    """The device ends with a batch only once the next two have been read."""
    read = [threading.Event() for _ in range(8)]
    in_time: list[bool] = []

    class Patient(Late):
        def _compute(self) -> None:
            in_time.append(read[int(self.memory[0, 0]) + 2].wait(timeout=5))
            super()._compute()

    def source() -> Iterator[Tensor]:
        for index, batch in enumerate(batches(6)):
            read[index].set()
            yield batch
        read[6].set()
        read[7].set()

    assert firsts(overlapped(source(), [Patient() for _ in range(3)])) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert all(in_time)


def answers_until_error(logits: Iterator[Tensor], error: type[Exception], says: str) -> list[float]:
    found: list[float] = []
    with pytest.raises(error, match=says):
        found.extend(float(some[0, 0]) for some in logits)
    return found


@pytest.mark.parametrize("late", [False, True])
def test_an_error_of_the_source_comes_after_the_answers_before_it(late: bool) -> None:
    def source() -> Iterator[Tensor]:
        yield from batches(4)
        raise OSError("the disk went away")

    slots: list[Slot] = [Late(), Late(), Late()]
    logits = overlapped(source(), slots) if late else stream(doubled, source(), CPU)
    assert answers_until_error(logits, OSError, "the disk went away") == [0.0, 2.0, 4.0, 6.0]
    assert not late or all(slot.closed for slot in slots if isinstance(slot, Late))


def test_an_error_of_the_call_comes_after_the_answers_before_it() -> None:
    class Refusing(Late):
        def send(self, batch: Tensor) -> None:
            if batch[0, 0] == 4:
                raise ValueError("no more")
            super().send(batch)

    slots = [Refusing() for _ in range(3)]
    assert answers_until_error(overlapped(batches(9), slots), ValueError, "no more") == [0.0, 2.0, 4.0, 6.0]
    assert all(slot.closed for slot in slots)

    def call(batch: Tensor) -> Tensor:
        if batch[0, 0] == 4:
            raise ValueError("no more")
        return doubled(batch)

    assert answers_until_error(stream(call, batches(9), CPU), ValueError, "no more") == [0.0, 2.0, 4.0, 6.0]


def test_no_answer_is_given_after_one_that_failed() -> None:
    slots = [Late(fails=3) for _ in range(3)]
    found = answers_until_error(overlapped(batches(9), slots), RuntimeError, "the device failed")
    assert found == [0.0, 2.0, 4.0]
    assert all(slot.closed for slot in slots)


def test_an_early_end_waits_for_what_is_under_way_and_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[Tensor]:
        try:
            yield from batches(100)
        finally:
            closed.set()

    slots = [Late(seconds=0.02) for _ in range(3)]
    logits = overlapped(source(), slots)
    next(logits)
    logits.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert all(slot.closed and slot.thread is not None and not slot.thread.is_alive() for slot in slots)


def test_an_answer_stays_as_it_was() -> None:
    first, *_ = list(stream(doubled, batches(3), CPU))
    assert torch.equal(first, torch.zeros(3, 2))
