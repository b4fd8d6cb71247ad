"""Graphs by bucket: any number of images, what is kept and what goes, several callers at once; recorded by a stand-in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from petalite.engine.graphs import Graphs
from petalite.errors import PetaliteError

SHAPE = (3, 4, 4)
CPU = torch.device("cpu")
WEIGHT = torch.randn(5, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def forward(pixels: Tensor) -> Tensor:
    """Five logits an image; sums in float64 of small whole numbers, so that no order of adding can show."""
    return (pixels.flatten(1).double() @ WEIGHT.mul(64).round().T).float()


def images(count: int, dtype: torch.dtype = torch.uint8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *SHAPE), generator=generator).to(dtype)


class StandIn:
    """A recorder for the CPU with what a GPU's has: fixed addresses, a pool that only grows, no room without end.

    A replay computes from where the input lay into where the answer lay. A graph takes `each` bytes an image.
    """

    def __init__(self, each: int = 100, room: int = 10**9) -> None:
        self.each, self.room = each, room
        self.pool = 0
        self.inside = False
        self.passes: list[int] = []

    def record(self, forward: Callable[[Tensor], Tensor], pixels: Tensor) -> tuple[Callable[[], object], Tensor]:
        assert self.inside
        if self.each * len(pixels) > self.room:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {self.each * len(pixels)} bytes.\nMore"
            )
        self.passes.append(len(pixels))
        self.pool = max(self.pool, self.each * len(pixels))
        logits = forward(pixels)

        def replay() -> None:
            assert self.inside
            time.sleep(0)  # another thread may come in here
            logits.copy_(forward(pixels))

        return replay, logits

    @contextmanager
    def in_order(self) -> Iterator[None]:
        assert not self.inside, "two callers at once"
        self.inside = True
        yield
        self.inside = False

    def pool_bytes(self) -> int:
        return self.pool

    def renew(self) -> None:
        self.pool = 0


def graphs(recorder: StandIn | None = None, limit_bytes: int = 10**9, buckets: tuple[int, ...] = (1, 4, 8)) -> Graphs:
    return Graphs(forward, SHAPE, CPU, buckets, limit_bytes, recorder or StandIn())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 8, 9, 12, 27])
def test_any_number_of_images_gives_the_logits_of_the_plain_pass(count: int, dtype: torch.dtype) -> None:
    some = graphs()
    some.forward(images(8, dtype, seed=9))  # what an earlier batch left behind must not show
    assert torch.equal(some.forward(images(count, dtype)), forward(images(count, dtype)))


def test_an_answer_stays_as_it_was() -> None:
    some = graphs()
    first = some.forward(images(3))
    expected = first.clone()
    some.forward(images(4, seed=1))
    assert torch.equal(first, expected)


def test_the_caller_may_write_to_its_batch_afterwards_and_in_between() -> None:
    some, pixels = graphs(), images(4)
    some.forward(pixels)
    pixels.zero_()
    assert torch.equal(some.forward(pixels), torch.zeros(4, 5))


def test_graphs_are_recorded_on_first_use_by_bucket_and_kind_of_input() -> None:
    recorder = StandIn()
    some = graphs(recorder)
    assert recorder.passes == []
    for count, dtype in ((3, torch.uint8), (4, torch.uint8), (3, torch.float32), (1, torch.uint8), (18, torch.uint8)):
        some.forward(images(count, dtype))
    assert recorder.passes == [4, 4, 1, 8]  # 18 = 8 + 8 + 2
    report = some.report()
    assert report["captures"] == 4
    assert report["graphs"] == [
        {"images": 4, "input": "float32", "replays": 1},
        {"images": 1, "input": "uint8", "replays": 1},
        {"images": 8, "input": "uint8", "replays": 2},
        {"images": 4, "input": "uint8", "replays": 3},
    ]
    inputs = (1 + 8 + 4) * 48 + 4 * 48 * 4
    assert report["bytes"] == 800 + inputs
    assert (report["dropped"], report["given_up"], report["buckets"]) == (0, {}, [1, 4, 8])


def test_the_graph_used_least_recently_goes_first() -> None:
    recorder = StandIn(each=0)
    some = graphs(recorder, limit_bytes=9 * 48)  # room for the inputs of 8 and 1, or of 4 and 1
    for count in (1, 4, 1, 8):
        some.forward(images(count))
    assert [graph["images"] for graph in some.report()["graphs"]] == [1, 8]
    some.forward(images(4))
    assert [graph["images"] for graph in some.report()["graphs"]] == [4]
    assert some.report()["bytes"] <= 9 * 48
    assert some.report()["dropped"] == 3
    assert torch.equal(some.forward(images(7)), forward(images(7)))


def test_where_the_others_cannot_make_room_one_by_one_the_pool_is_begun_anew() -> None:
    recorder = StandIn(each=100)
    some = graphs(recorder, limit_bytes=4 * 148 + 10)
    some.forward(images(4))
    recorder.pool += 300  # what sharing a pool costs: holes that no later graph fits into
    assert torch.equal(some.forward(images(1)), forward(images(1)))
    assert recorder.passes == [4, 1, 1]
    assert [graph["images"] for graph in some.report()["graphs"]] == [1]
    assert some.report()["bytes"] == 148


@pytest.mark.parametrize(("limit", "room"), [(4 * 148, 10**9), (10**9, 4 * 100)], ids=["limit", "device"])
def test_a_bucket_that_does_not_fit_is_given_up_with_a_word(
    limit: int, room: int, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = StandIn(each=100, room=room)
    some = graphs(recorder, limit)
    some.forward(images(1))
    assert torch.equal(some.forward(images(11)), forward(images(11)))
    assert "batches of 8 images do not fit on cpu and are split: " in capsys.readouterr().err
    assert list(some.report()["given_up"]) == ["8"]
    assert some.report()["buckets"] == [1, 4]
    some.forward(images(8, torch.float32)[:1])
    assert capsys.readouterr().err == ""


def test_where_nothing_fits_it_is_an_error() -> None:
    for recorder, limit in ((StandIn(room=50), 10**9), (StandIn(), 50)):
        with pytest.raises(PetaliteError, match="no CUDA graph fits on cpu, not even for 1 images: "):
            graphs(recorder, limit).forward(images(3))


def test_a_pass_that_cannot_be_recorded_is_an_error_and_the_next_one_works() -> None:
    class Refusing(StandIn):
        def record(self, forward: Callable[[Tensor], Tensor], pixels: Tensor) -> tuple[Callable[[], object], Tensor]:
            if len(pixels) == 4:
                raise PetaliteError("the forward pass cannot be recorded as a CUDA graph for 4 images on cpu: why")
            return super().record(forward, pixels)

    class Recorder(Refusing):
        @contextmanager
        def in_order(self) -> Iterator[None]:
            self.inside = True
            try:
                yield
            finally:
                self.inside = False

    some = graphs(Recorder())
    with pytest.raises(PetaliteError, match="cannot be recorded"):
        some.forward(images(3))
    assert torch.equal(some.forward(images(1)), forward(images(1)))
    assert some.report()["captures"] == 1


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 4), (2, 48)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PetaliteError, match=r"a batch must be \(N, 3, 4, 4\), got"):
        graphs().forward(torch.zeros(shape))


@pytest.mark.parametrize("buckets", [(), (0, 1)])
def test_buckets_that_make_no_sense_are_refused(buckets: tuple[int, ...]) -> None:
    with pytest.raises(PetaliteError, match="buckets must be whole numbers of at least 1"):
        graphs(buckets=buckets)


def test_several_threads_get_their_own_answers_and_record_once() -> None:
    recorder = StandIn()
    some = graphs(recorder)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for turn in range(30):
            pixels = images(1 + (seed + turn) % 11, seed=100 * seed + turn)
            try:
                if not torch.equal(some.forward(pixels), forward(pixels)):
                    wrong.append(seed)
            except AssertionError:
                wrong.append(-1)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sorted(recorder.passes) == [1, 4, 8]
