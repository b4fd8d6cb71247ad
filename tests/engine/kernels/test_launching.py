"""Kernels launched, or compiled beside each other: each once, none of them run, and nothing kept in memory for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from petalite.engine.kernels.launching import compile_together, compiling, launched

GPU = torch.device("cuda", 0)


class Kernel:
    """Stands for a function of `triton.jit`: notes what it is asked for."""

    def __init__(self, compile: Callable[[], None] = lambda: None) -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.compiled: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.loaded = 0
        self._compile = compile

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self.launches.append((grid, args, options))

    def warmup(self, *args: Any, grid: tuple[int, ...], **options: Any) -> Kernel:
        self._compile()
        self.compiled.append((args, options))
        return self

    @property
    def run(self) -> None:
        self.loaded += 1


@pytest.fixture(autouse=True)
def _no_gpu_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", nullcontext)


def test_a_kernel_is_launched() -> None:
    kernel = Kernel()
    launched(kernel, (3,))(1, 2, num_warps=4)
    assert kernel.launches == [((3,), (1, 2), {"num_warps": 4})] and not kernel.compiled


def test_kernels_are_compiled_and_loaded_and_not_launched() -> None:
    kernel, seen = Kernel(), []
    compile_together([lambda: launched(kernel, (3,))(1, num_warps=4), lambda: seen.append(compiling())], GPU)
    assert kernel.compiled == [((1,), {"num_warps": 4})] and kernel.loaded == 1
    assert not kernel.launches and seen == [True] and not compiling()


def test_what_is_compiled_alike_is_compiled_once() -> None:
    kernel = Kernel()

    def run() -> None:
        for x in (torch.zeros(32), torch.ones(16), torch.zeros(8, dtype=torch.int8), torch.zeros(9)[1:]):
            launched(kernel, (1,))(x, 5)
        launched(kernel, (2,))(torch.zeros(4), 5)
        launched(kernel, (1,))(torch.zeros(4), 6)
        launched(kernel, (1,))(torch.zeros(4), 5, num_warps=8)

    compile_together([run, run], GPU)
    assert len(kernel.compiled) == 5  # float32, int8, float32 that starts between, another number, other options


def test_the_compiler_sees_a_tensor_that_may_be_freed() -> None:
    kernel, x = Kernel(), torch.zeros(64, 64, dtype=torch.bfloat16)
    described = TensorDescriptor(x, [64, 64], [64, 1], [16, 32])
    compile_together([lambda: launched(kernel, (1,))(x, x.flatten()[1:], described)], GPU)
    whole, between, matrix = kernel.compiled[0][0]
    assert not isinstance(whole, torch.Tensor) and not isinstance(matrix.base, torch.Tensor)
    assert whole.dtype == between.dtype == matrix.base.dtype == torch.bfloat16
    assert (whole.data_ptr() % 16, between.data_ptr() % 16) == (0, 2)
    assert (matrix.shape, matrix.strides, matrix.block_shape) == ([64, 64], [64, 1], [16, 32])


def test_descriptions_of_other_tiles_are_other_kernels() -> None:
    kernel, x = Kernel(), torch.zeros(64, 64)

    def run() -> None:
        for tile in ([16, 32], [32, 32], [16, 32]):
            launched(kernel, (1,))(TensorDescriptor(x, [64, 64], [64, 1], tile))

    compile_together([run], GPU)
    assert sorted(args[0].block_shape for args, _ in kernel.compiled) == [[16, 32], [32, 32]]


def test_they_are_compiled_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petalite.engine.kernels.launching.available_cores", lambda: 3)
    together = threading.Barrier(3)  # breaks where one has to wait for another to be done
    kernels = [Kernel(lambda: void(together.wait(timeout=10))) for _ in range(3)]
    compile_together([lambda kernel=kernel: launched(kernel, (1,))() for kernel in kernels], GPU)
    assert [len(kernel.compiled) for kernel in kernels] == [1, 1, 1]


def void(_: object) -> None:
    """For a function that must return nothing."""


def test_what_fails_is_left_for_whoever_needs_it() -> None:
    def fail() -> None:
        raise RuntimeError("does not compile")

    bad, good = Kernel(fail), Kernel()

    def run() -> None:
        launched(bad, (1,))()
        launched(good, (1,))()
        raise torch.OutOfMemoryError("no room")

    compile_together([run, lambda: launched(good, (1,))(7)], GPU)
    assert not bad.compiled and sorted(args for args, _ in good.compiled) == [(), (7,)] and not compiling()
    with pytest.raises(RuntimeError, match="does not compile"):
        bad.warmup(grid=(1,))


def test_another_thread_launches_meanwhile() -> None:
    kernel = Kernel()

    def run() -> None:
        other = threading.Thread(target=lambda: launched(kernel, (1,))("other"))
        other.start()
        other.join()

    compile_together([run], GPU)
    assert [args for _, args, _ in kernel.launches] == [("other",)] and not kernel.compiled


def test_for_a_cpu_nothing_is_done() -> None:
    def run() -> None:
        raise AssertionError("was run")

    compile_together([run], torch.device("cpu"))
