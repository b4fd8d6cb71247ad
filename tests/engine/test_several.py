"""Several engines behind one face: rows and batches in order, each engine on its own thread, errors with their device."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from petalite.engine.several import Several, device_names
from petalite.errors import PetaliteError


class Fake:
    """An engine on the CPU that takes its time, and says when two threads call it."""

    def __init__(self, seconds: float = 0.0, fails: bool = False) -> None:
        self.device = torch.device("cpu")
        self.seconds, self.fails = seconds, fails
        self.threads: set[int] = set()
        self.sizes: list[int] = []
        self.ended = 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.threads.add(threading.get_ident())
        self.sizes.append(len(pixels))
        assert torch.is_inference_mode_enabled() or not pixels.requires_grad
        time.sleep(self.seconds)
        self.ended += 1
        if self.fails:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more lines")
        return pixels.flatten(1)[:, :2].float() * 3

    def report(self) -> dict[str, Any]:
        return {"calls": len(self.sizes)}


def images(count: int) -> Tensor:
    return torch.arange(count * 12, dtype=torch.float32).view(count, 3, 2, 2)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 31, 256])
def test_rows_come_back_in_order_from_all_engines(count: int) -> None:
    engines = [Fake(0.02), Fake(), Fake(0.01)]
    several = Several(engines, least=4)
    assert torch.equal(several.forward(images(count)), 3 * images(count).flatten(1)[:, :2])
    assert sum(sum(engine.sizes) for engine in engines) == count
    if count == 256:
        assert sorted(size for engine in engines for size in engine.sizes) == [85, 85, 86]


def test_a_small_batch_goes_to_one_engine_and_the_next_to_another() -> None:
    engines = [Fake(), Fake()]
    several = Several(engines, least=4)
    for _ in range(6):
        several.forward(images(7))
    assert [engine.sizes for engine in engines] == [[7, 7, 7], [7, 7, 7]]


def test_the_pieces_run_at_the_same_time_each_on_its_own_thread() -> None:
    met = threading.Barrier(3, timeout=5)  # passed only when three are inside at once

    class Meeting(Fake):
        def forward(self, pixels: Tensor) -> Tensor:
            met.wait()
            return super().forward(pixels)

    engines = [Meeting() for _ in range(3)]
    several = Several(engines, least=1)
    for _ in range(3):
        several.forward(images(3))
    assert all(len(engine.threads) == 1 for engine in engines)
    assert len(set.union(*(engine.threads for engine in engines))) == 3
    assert threading.get_ident() not in engines[0].threads


def test_a_failure_names_its_device_once_nothing_is_under_way() -> None:
    slow = Fake(0.05)
    several = Several([Fake(fails=True), slow], least=1)
    with pytest.raises(PetaliteError, match=r"^cpu: CUDA error: an illegal memory access was encountered$"):
        several.forward(images(4))
    assert (slow.sizes, slow.ended) == ([2], 1)
    assert torch.equal(Several([slow], least=1).forward(images(2)), 3 * images(2).flatten(1)[:, :2])


def test_a_stream_keeps_its_order_and_spreads_over_the_engines() -> None:
    engines = [Fake(0.003), Fake(), Fake(0.001)]
    batches = [images(1 + index % 4) + index for index in range(20)]
    answers = list(Several(engines).stream(iter(batches)))
    assert len(answers) == 20
    assert all(torch.equal(answer, 3 * batch.flatten(1)[:, :2]) for answer, batch in zip(answers, batches, strict=True))
    assert [len(engine.sizes) for engine in engines] == [7, 7, 6]
    assert all(len(engine.threads) == 1 for engine in engines)


def test_a_stream_ends_with_the_error_of_an_engine_or_of_the_source() -> None:
    engines = [Fake(), Fake(fails=True)]
    found: list[Tensor] = []
    with pytest.raises(PetaliteError, match=r"^cpu: CUDA error"):
        found.extend(Several(engines).stream([images(2)] * 9))
    assert len(found) == 1

    def source() -> Iterator[Tensor]:
        yield images(1)
        yield images(2)
        raise OSError("the disk went away")

    sizes: list[int] = []
    with pytest.raises(OSError, match="the disk went away"):
        sizes.extend(len(answer) for answer in Several([Fake(0.01), Fake()]).stream(source()))
    assert sizes == [1, 2]


def test_a_stream_that_ends_early_leaves_nothing_under_way() -> None:
    engines = [Fake(0.01), Fake(0.1)]
    answers = Several(engines).stream(images(1) for _ in range(100))
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert [len(engine.sizes) for engine in engines] == [engine.ended for engine in engines]
    assert sum(engine.ended for engine in engines) <= 3


def test_the_report_is_by_device() -> None:
    several = Several([Fake()])
    several.forward(images(1))
    assert several.report() == {"cpu": {"calls": 1}}
    assert several.device == torch.device("cpu")


def test_devices_are_named_one_by_one_or_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert device_names("cuda:all") == ("cuda:0", "cuda:1", "cuda:2")
    assert device_names("cuda:2,0") == ("cuda:2", "cuda:0")
    for single in ("auto", "cpu", "cuda", "cuda:1", "cuda:", "cuda:1,", "tpu"):
        assert device_names(single) == (single,)
    with pytest.raises(PetaliteError, match="names a GPU twice"):
        device_names("cuda:1,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(PetaliteError, match="no CUDA GPU is usable here"):
        device_names("cuda:all")
    with pytest.raises(PetaliteError, match="no device was named"):
        Several([])
