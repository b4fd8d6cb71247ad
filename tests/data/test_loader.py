"""Batches come in order whoever reads them, bad files are named, and the global random state stays as it was."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from petalite.data import Augment, Batch, Preprocess, Sample, decode, load_batches, train_batches
from petalite.data.loader import read_batches
from petalite.data.workers import available_cores, usable_workers, worker_context
from petalite.errors import PetaliteError

MakeImage = Callable[..., Path]


@pytest.fixture
def paths(tmp_path: Path, make_image: MakeImage) -> list[Path]:
    """Seven images; a batch of 3 leaves a last one of 1."""
    return [make_image(tmp_path / f"{number}.png") for number in range(7)]


@pytest.fixture
def samples(paths: list[Path]) -> list[Sample]:
    return [Sample(path, number % 3) for number, path in enumerate(paths)]


@pytest.mark.parametrize("workers", [0, 1, 2, None])
def test_batches_are_in_order(paths: list[Path], preprocess: Preprocess, workers: int | None) -> None:
    batches = list(load_batches(paths, preprocess, 3, workers))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert all(isinstance(batch, Batch) and batch.pixels.dtype == torch.uint8 and not batch.errors for batch in batches)
    expected = torch.stack([preprocess(decode(path)) for path in paths])
    assert torch.equal(torch.cat([batch.pixels for batch in batches]), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_a_row_and_the_rest_goes_on(paths: list[Path], preprocess: Preprocess, workers: int) -> None:
    paths[1].write_bytes(b"")
    for path in paths[3:6]:
        path.unlink()
    first, second, third = load_batches(paths, preprocess, 3, workers)
    assert first.indices.tolist() == [0, 2] and first.pixels.shape == (2, 3, 16, 16)
    assert first.errors == [(1, f"{paths[1]} is empty (0 bytes)")]
    assert second.indices.tolist() == [] and second.pixels.shape == (0, 3, 16, 16)
    assert second.errors == [(index, f"{paths[index]} does not exist") for index in (3, 4, 5)]
    assert third.indices.tolist() == [6]
    assert torch.equal(first.pixels[1], preprocess(decode(paths[2])))


def test_no_files_are_no_batches(preprocess: Preprocess) -> None:
    assert list(load_batches([], preprocess, 4)) == []


def test_a_batch_of_nothing_is_refused(paths: list[Path], preprocess: Preprocess) -> None:
    with pytest.raises(PetaliteError, match="a batch of 0 images is not possible"):
        list(load_batches(paths, preprocess, 0))


@pytest.mark.parametrize("policy", ["none", "light", "rand"])
def test_training_batches_follow_order_and_seeds(samples: list[Sample], preprocess: Preprocess, policy: str) -> None:
    augment = Augment(preprocess, policy)
    order, seeds = [5, 0, 5, 3, 2], [11, 12, 13, 14, 15]
    for workers in (0, 2):
        batches = list(train_batches(samples, augment, order, seeds, 2, workers))
        assert [targets.tolist() for _, targets in batches] == [[2, 0], [2, 0], [2]]
        expected = [augment(decode(samples[i].path), seed) for i, seed in zip(order, seeds, strict=True)]
        assert torch.equal(torch.cat([pixels for pixels, _ in batches]), torch.stack(expected))


def test_a_resumed_order_gives_the_rest_of_the_same_batches(samples: list[Sample], preprocess: Preprocess) -> None:
    augment = Augment(preprocess, "light")
    order, seeds = [6, 1, 4, 0, 2, 3, 5], list(range(7))
    whole = list(train_batches(samples, augment, order, seeds, 2, workers=2))
    rest = list(train_batches(samples, augment, order[4:], seeds[4:], 2, workers=0))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[2:], rest, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_stops_at_a_bad_file_and_names_it(samples: list[Sample], preprocess: Preprocess, workers: int) -> None:
    samples[4].path.write_text("not an image")
    with pytest.raises(PetaliteError, match=r"4\.png is not an image .* \(it holds text\); remove it from"):
        list(train_batches(samples, Augment(preprocess), list(range(7)), [0] * 7, 3, workers))


def test_seeds_must_match_the_order(samples: list[Sample], preprocess: Preprocess) -> None:
    with pytest.raises(ValueError, match="a seed for each of the 2 images, not 1"):
        list(train_batches(samples, Augment(preprocess), [0, 1], [0], 2, 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_left_alone(samples: list[Sample], preprocess: Preprocess, workers: int) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(train_batches(samples, Augment(preprocess, "rand"), [0, 1, 2], [1, 2, 3], 2, workers))
    list(load_batches([sample.path for sample in samples], preprocess, 2, workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_works_after_torch_has_used_its_threads(paths: list[Path], preprocess: Preprocess) -> None:
    torch.randn(400, 400) @ torch.randn(400, 400)
    assert sum(len(batch.indices) for batch in load_batches(paths, preprocess, 2, workers=2)) == 7


@pytest.fixture
def forked() -> None:
    """For tests of forked workers: once CUDA is in use in this process, workers are never forked."""
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use in this process")


@pytest.mark.usefixtures("forked")
def test_workers_end_when_the_rest_is_not_wanted(paths: list[Path], preprocess: Preprocess) -> None:
    batches = load_batches(paths, preprocess, 1, workers=2)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


@pytest.fixture
def deadly(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Files whose decoding ends the process that does it, as a crash in a decoder's C code does."""
    names: set[str] = set()

    def crashing(source: str) -> object:
        if source in names:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(source)

    monkeypatch.setattr("petalite.data.loader.decode", crashing)
    return names


@pytest.mark.usefixtures("forked")
def test_an_image_that_crashes_its_decoder_costs_that_image(
    paths: list[Path], preprocess: Preprocess, deadly: set[str]
) -> None:
    deadly |= {str(paths[1]), str(paths[5])}
    batches = list(load_batches(paths, preprocess, 2, workers=2))
    assert [batch.indices.tolist() for batch in batches] == [[0], [2, 3], [4], [6]]
    why = "crashes the image decoder"
    assert [error for batch in batches for error in batch.errors] == [(at, f"{paths[at]} {why}") for at in (1, 5)]
    expected = torch.stack([preprocess(decode(paths[index])) for index in (0, 2, 3, 4, 6)])
    assert torch.equal(torch.cat([batch.pixels for batch in batches]), expected)


@pytest.mark.usefixtures("forked")
def test_training_stops_at_an_image_that_crashes_its_decoder(
    samples: list[Sample], preprocess: Preprocess, deadly: set[str]
) -> None:
    deadly.add(str(samples[4].path))
    with pytest.raises(PetaliteError, match=r"4\.png crashes the image decoder; remove it from the training"):
        list(train_batches(samples, Augment(preprocess), list(range(7)), [0] * 7, 3, workers=2))


@pytest.mark.usefixtures("forked")
def test_processes_that_cannot_even_begin_are_an_error(
    paths: list[Path], preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petalite.data.workers._begin", lambda work: os._exit(1))
    with pytest.raises(PetaliteError, match="ended before it could begin; is there memory left"):
        list(load_batches(paths, preprocess, 2, workers=2))


@dataclass(frozen=True)
class Held:
    """An image that is no file."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        return self.data


@pytest.mark.parametrize("workers", [0, 2])
def test_lists_are_taken_as_they_are_needed_and_may_hold_bytes(
    paths: list[Path], preprocess: Preprocess, workers: int
) -> None:
    taken: list[int] = []

    def lists() -> Iterator[list[str | Held]]:
        for number in range(1_000):
            taken.append(number)
            yield [str(paths[number % 7]), Held("inside", paths[0].read_bytes()), Held("nothing", b"")]

    batches = read_batches(lists(), preprocess, workers)
    first = next(batches)
    assert first.indices.tolist() == [0, 1]
    assert first.errors == [(2, "nothing: the image is empty (0 bytes)")]
    assert torch.equal(first.pixels[0], first.pixels[1])
    assert len(taken) <= 1 + 2 * workers
    batches.close()


@pytest.mark.usefixtures("forked")
def test_once_cuda_is_in_use_workers_are_not_forked(
    samples: list[Sample], preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker_context().get_start_method() == "fork"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert worker_context().get_start_method() == "forkserver"
    augment = Augment(preprocess, "rand")
    batches = list(train_batches(samples, augment, range(7), range(7), 4, workers=2))
    expected = [augment(decode(sample.path), seed) for seed, sample in enumerate(samples)]
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), torch.stack(expected))


def test_workers_default_to_the_available_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_workers(None) == min(8, available_cores())
    monkeypatch.setattr("petalite.data.workers.available_cores", lambda: 64)
    assert (usable_workers(None), usable_workers(0), usable_workers(12)) == (8, 0, 12)
