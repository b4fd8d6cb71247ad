"""Batches: what waits together is computed together, never more than fits, and nobody waits for nothing."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass

import pytest

from petalite.serve.batches import Batcher
from petalite.serve.wire import Answer, Answers


@dataclass(frozen=True)
class Item:
    name: str
    images: int = 1


class Model:
    """Computes when it is told to, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: queue.Queue[list[str]] = queue.Queue()
        self.gate = threading.Event()

    def __call__(self, batch: list[Item]) -> None:
        self.batches.put([item.name for item in batch])
        assert self.gate.wait(10)

    def next(self) -> list[str]:
        return self.batches.get(timeout=10)


def test_what_comes_while_the_model_computes_is_the_next_batch() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=3, max_wait_s=5.0, coming=lambda: False)
    batcher.put(Item("a"))
    assert model.next() == ["a"]
    for item in (Item("b"), Item("c", 2), Item("d", 2), Item("e")):
        batcher.put(item)
    model.gate.set()
    assert [model.next(), model.next()] == [["b", "c"], ["d", "e"]]
    batcher.close()


def test_the_first_waits_for_what_is_coming_but_not_for_ever() -> None:
    model = Model()
    model.gate.set()
    coming = True
    batcher = Batcher(model, max_batch=8, max_wait_s=5.0, coming=lambda: coming)
    batcher.put(Item("a"))
    time.sleep(0.02)
    assert model.batches.empty()
    batcher.put(Item("b"))
    coming = False  # the third one could not be decoded
    batcher.poke()
    assert model.next() == ["a", "b"]
    coming = True
    short = Batcher(model, max_batch=8, max_wait_s=0.01, coming=lambda: True)
    short.put(Item("c"))
    assert model.next() == ["c"]
    batcher.close()
    short.close()


def test_closing_computes_what_is_queued() -> None:
    model = Model()
    model.gate.set()
    batcher = Batcher(model, max_batch=2, max_wait_s=5.0, coming=lambda: True)
    for name in "abc":
        batcher.put(Item(name))
    batcher.close()
    assert [model.next(), model.next()] == [["a", "b"], ["c"]]


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_answers_are_put_together_however_they_were_cut(cut: int) -> None:
    sent = [Answer(id, 200, b"x" * size, 3, 0.5, 0.25, 0.125, 9) for id, size in enumerate((0, 5, 70_000))]
    wire = b"".join(answer.frame() for answer in sent)
    answers = Answers()
    received = [answer for start in range(0, len(wire), cut) for answer in answers.feed(wire[start : start + cut])]
    assert received == sent
