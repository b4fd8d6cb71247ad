"""CUDA graphs, streams of batches and several engines on a real device: answers, concurrency, memory, failures."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from petalite.engine import load
from petalite.engine.graphs import Graphs
from petalite.engine.several import Several
from petalite.engine.stream import stream
from petalite.errors import PetaliteError
from tests.tiny import tiny_checkpoint, tiny_pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHAPE = (3, 16, 16)
BUCKETS = (1, 2, 4, 8)


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def network(seed: int = 0, width: int = 4096) -> Callable[[Tensor], Tensor]:
    """Three products in bf16, long enough that cuBLAS splits them and takes a workspace, and that callers overlap."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((width, 768), (width, width), (10, width))
    weights = [torch.randn(size, generator=generator).div(size[1] ** 0.5).cuda().bfloat16() for size in sizes]

    def forward(pixels: Tensor) -> Tensor:
        x = pixels.flatten(1).to(torch.bfloat16) / 64
        for weight in weights[:-1]:
            x = torch.nn.functional.gelu(x @ weight.T)
        return (x @ weights[-1].T).float()

    return forward


def images(count: int, seed: int = 0, dtype: torch.dtype = torch.uint8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *SHAPE), generator=generator, dtype=torch.uint8).to(dtype)


def padded(pixels: Tensor, bucket: int) -> Tensor:
    return torch.cat([pixels, pixels.new_zeros(bucket - len(pixels), *SHAPE)])


def plainly(forward: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """What graphs of BUCKETS have to answer, bit by bit: the same kernels at the same sizes."""
    parts = []
    for some in pixels.cuda().split(BUCKETS[-1]):
        bucket = next(size for size in BUCKETS if size >= len(some))
        parts.append(forward(padded(some, bucket))[: len(some)])
    return torch.cat(parts)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("where", ["device", "cpu", "pinned"])
def test_every_number_of_images_is_answered_as_without_a_graph(dtype: torch.dtype, where: str) -> None:
    forward = network()
    graphs = Graphs(forward, SHAPE, device(), BUCKETS)
    for count in (1, 2, 3, 5, 8, 9, 21, 3, 0):
        pixels = images(count, seed=count, dtype=dtype)
        moved = pixels.cuda() if where == "device" else pixels.pin_memory() if where == "pinned" else pixels
        answer = graphs.forward(moved)
        expected = plainly(forward, pixels) if count else torch.empty(0, 10, device="cuda")
        assert torch.equal(answer, expected)
    assert graphs.report()["captures"] == len(BUCKETS)


def test_rows_do_not_depend_on_what_is_left_behind_them() -> None:
    graphs = Graphs(network(), SHAPE, device(), (8,))
    pixels = images(5, dtype=torch.float32).cuda()
    expected = graphs.forward(pixels)
    for rubbish in (float("nan"), float("inf"), 3e38):
        graphs.forward(torch.full((8, *SHAPE), rubbish, device="cuda"))
        assert torch.equal(graphs.forward(pixels), expected)


def test_an_answer_stays_as_it_was() -> None:
    graphs = Graphs(network(), SHAPE, device(), BUCKETS)
    first = graphs.forward(images(4).cuda())
    expected = first.clone()
    for seed in range(20):
        graphs.forward(images(4, seed).cuda())
    assert torch.equal(first, expected)


def test_callers_in_threads_on_streams_of_their_own_get_their_own_answers() -> None:
    """Two engines, four threads on four streams, each thread asking both engines in turn."""
    forwards = [network(seed) for seed in range(2)]
    engines = [Graphs(forward, SHAPE, device(), BUCKETS) for forward in forwards]
    asked = [(seed % 2, images(1 + seed % 8, seed).cuda()) for seed in range(16)]
    expected = [plainly(forwards[which], pixels) for which, pixels in asked]
    torch.cuda.synchronize()
    problems: list[str] = []

    def ask(first: int) -> None:
        try:
            own = torch.cuda.Stream()
            with torch.cuda.stream(own):
                for turn in range(60):
                    place = (first + turn) % len(asked)
                    which, pixels = asked[place]
                    answers = [engines[which].forward(pixels) for _ in range(3)]
                    own.synchronize()
                    if not all(torch.equal(answer, expected[place]) for answer in answers):
                        problems.append(f"thread {first}, turn {turn}: a wrong answer")
        except Exception as error:
            problems.append(repr(error))

    threads = [threading.Thread(target=ask, args=(4 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_engines_record_while_others_answer() -> None:
    """Every thread makes engines of its own, so that recordings fall into the answers of others."""
    forward = network()
    pixels = images(4).cuda()
    expected = plainly(forward, pixels)
    torch.cuda.synchronize()
    problems: list[str] = []

    def work() -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(5):
                    graphs = Graphs(forward, SHAPE, device(), BUCKETS)
                    for _ in range(20):
                        answer = graphs.forward(pixels)
                    if not torch.equal(answer.cpu(), expected.cpu()):
                        problems.append("a wrong answer")
        except Exception as error:
            problems.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_graph_does_not_write_to_memory_that_others_have_freed() -> None:
    """torch.compile frees cuBLAS's workspaces around its own recordings; graphs must not still be using them."""
    graphs = Graphs(network(), SHAPE, device(), BUCKETS)
    pixels = images(8).cuda()
    expected = graphs.forward(pixels).clone()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    others = [torch.full((1 << 22,), 7, dtype=torch.uint8, device="cuda") for _ in range(64)]
    for _ in range(10):
        assert torch.equal(graphs.forward(pixels), expected)
    assert all(bool((other == 7).all()) for other in others)


def heavy(pixels: Tensor) -> Tensor:
    """16 MB an image between input and answer."""
    between = pixels.flatten(1).float().mean(1, keepdim=True).expand(-1, 1 << 22).contiguous()
    return between[:, :10] + 1


def test_the_bound_holds_and_memory_comes_back() -> None:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    limit = 200 << 20
    graphs = Graphs(heavy, SHAPE, device(), BUCKETS, limit_bytes=limit)
    for count in (8, 1, 4, 2, 8, 1):
        assert torch.equal(graphs.forward(images(count).cuda()), heavy(images(count).cuda()))
        report = graphs.report()
        assert 0 < report["bytes"] <= limit
    assert report["given_up"] == {}
    assert report["bytes"] >= 8 << 24
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved() - before
    assert report["bytes"] <= held + (4 << 20)
    del graphs
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < (8 << 20)


def test_a_bucket_beyond_the_bound_is_split(capsys: pytest.CaptureFixture[str]) -> None:
    graphs = Graphs(heavy, SHAPE, device(), BUCKETS, limit_bytes=100 << 20)
    pixels = images(8).cuda()
    assert torch.equal(graphs.forward(pixels), heavy(pixels))
    report = graphs.report()
    assert list(report["given_up"]) == ["8"]
    assert report["bytes"] <= 100 << 20
    assert "batches of 8 images do not fit" in capsys.readouterr().err


def test_out_of_memory_is_met_with_smaller_batches(capsys: pytest.CaptureFixture[str]) -> None:
    def greedy(pixels: Tensor) -> Tensor:
        if len(pixels) > 2:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        return pixels.flatten(1)[:, :10].float()

    graphs = Graphs(greedy, SHAPE, device(), BUCKETS)
    pixels = images(7).cuda()
    assert torch.equal(graphs.forward(pixels), pixels.flatten(1)[:, :10].float())
    assert graphs.report()["buckets"] == [1, 2]
    assert "are split" in capsys.readouterr().err


def test_a_pass_that_waits_for_the_device_is_refused_and_leaves_no_trace() -> None:
    def waiting(pixels: Tensor) -> Tensor:
        if pixels.float().mean().item() > 1e9:
            raise AssertionError("never")
        return pixels.flatten(1)[:, :10].float()

    good = Graphs(network(), SHAPE, device(), BUCKETS)
    expected = good.forward(images(2).cuda())
    here = torch.cuda.current_stream()
    for _ in range(2):
        with pytest.raises(PetaliteError, match="the forward pass cannot be recorded as a CUDA graph for 4 images"):
            Graphs(waiting, SHAPE, device(), BUCKETS).forward(images(3).cuda())
    assert torch.cuda.current_stream() == here
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.equal(good.forward(images(2).cuda()), expected)
    forward = network(seed=3)
    another = Graphs(forward, SHAPE, device(), BUCKETS)
    assert torch.equal(another.forward(images(4).cuda()), plainly(forward, images(4)))


def test_a_caller_may_record_the_pass_in_a_graph_of_its_own() -> None:
    forward = network()
    graphs = Graphs(forward, SHAPE, device(), BUCKETS)
    pixels = images(4).cuda()
    with torch.inference_mode():
        forward(pixels)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = graphs.forward(pixels)
        pixels.copy_(images(4, seed=5))
        graph.replay()
        assert torch.equal(logits, forward(pixels))


def sizes() -> list[int]:
    return [8, 8, 8, 3, 8, 1, 8, 8, 5, 8, 8, 8, 2]


@pytest.mark.parametrize("where", ["device", "cpu", "pinned"])
def test_a_stream_answers_in_order(where: str) -> None:
    forward = network()
    graphs = Graphs(forward, SHAPE, device(), BUCKETS)
    batches = [images(size, seed, torch.float32 if seed > 9 else torch.uint8) for seed, size in enumerate(sizes())]
    expected = [plainly(forward, batch).cpu() for batch in batches]

    def source() -> Iterator[Tensor]:
        for batch in batches:
            yield batch.cuda() if where == "device" else batch.pin_memory() if where == "pinned" else batch.clone()

    answers = list(stream(graphs.forward, source(), device()))
    assert all(answer.device.type == "cpu" and answer.dtype == torch.float32 for answer in answers)
    assert all(torch.equal(answer, wanted) for answer, wanted in zip(answers, expected, strict=True))


def test_a_source_may_use_one_piece_of_memory_again_and_again() -> None:
    forward = network()
    memory = torch.empty(8, *SHAPE, dtype=torch.uint8)

    def source() -> Iterator[Tensor]:
        for seed in range(12):
            yield memory.copy_(images(8, seed))

    graphs = Graphs(forward, SHAPE, device(), BUCKETS)
    for seed, answer in enumerate(stream(graphs.forward, source(), device())):
        assert torch.equal(answer, plainly(forward, images(8, seed)).cpu())


def test_an_early_end_gives_the_memory_back() -> None:
    def call(pixels: Tensor) -> Tensor:
        return pixels.flatten(1)[:, :10].float()

    gc.collect()
    before = torch.cuda.memory_allocated()
    answers = stream(call, (torch.zeros(64, 3, 256, 256, dtype=torch.uint8) for _ in range(50)), device())
    next(answers)
    assert torch.cuda.memory_allocated() - before >= 64 * 3 * 256 * 256
    answers.close()  # type: ignore[attr-defined]
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("fault", ["source", "call"])
def test_errors_reach_the_consumer_after_the_answers_before_them(fault: str) -> None:
    def source() -> Iterator[Tensor]:
        for index in range(6):
            if fault == "source" and index == 4:
                raise OSError("the disk went away")
            yield torch.full((2, *SHAPE), index, dtype=torch.uint8)

    def call(pixels: Tensor) -> Tensor:
        if fault == "call" and int(pixels[0, 0, 0, 0]) == 4:
            raise OSError("the disk went away")
        return pixels.flatten(1)[:, :10].float()

    found: list[float] = []
    with pytest.raises(OSError, match="the disk went away"):
        found.extend(float(answer[0, 0]) for answer in stream(call, source(), device()))
    assert found == [0.0, 1.0, 2.0, 3.0]


def test_several_engines_answer_as_one() -> None:
    """On every GPU of the machine; where there is one alone, two engines share it."""
    count = torch.cuda.device_count()

    def on(target: torch.device) -> Callable[[Tensor], Tensor]:
        weights = torch.randn(10, 768, generator=torch.Generator().manual_seed(1)).to(target)
        return lambda pixels: pixels.flatten(1).float() @ weights.T

    places = [torch.device("cuda", index % count) for index in range(max(2, count))]
    several = Several([Graphs(on(place), SHAPE, place, BUCKETS) for place in places], least=2)
    expected = on(places[0])
    for size in (1, 4, 7, 16, 40):
        pixels = images(size, size)
        wanted = expected(pixels.to(places[0]))
        for given in (pixels, pixels.to(places[0]), pixels.to(places[-1])):
            answer = several.forward(given)
            assert answer.device == places[0]
            torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-2)
    batches = [images(size, seed) for seed, size in enumerate(sizes())]
    for batch, answer in zip(batches, several.stream(iter(batches)), strict=True):
        torch.testing.assert_close(answer, expected(batch.to(places[0])).cpu(), rtol=1e-4, atol=1e-2)
    with pytest.raises(PetaliteError, match=r"^cuda:\d+: a batch must be"):
        several.forward(torch.zeros(4, 3, 5, 5))


@pytest.mark.parametrize("engine", ["module", "fused"])
def test_a_classifier_streams_what_it_answers_one_by_one(tmp_path: Path, engine: str) -> None:
    classifier = load(tiny_checkpoint(tmp_path / "tiny"), "cuda", compute="fp16", engine=engine)
    batches = [tiny_pixels(size, seed) for seed, size in enumerate(sizes())]
    expected = [classifier.logits(batch) for batch in batches]
    for answer, wanted in zip(classifier.stream(iter(batches)), expected, strict=True):
        assert torch.equal(answer, wanted)
