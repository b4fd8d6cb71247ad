"""Triton made ready in a thread: it compiles something on the GPU it is for, and what goes wrong is kept to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch

from petalite.engine.kernels import ready
from petalite.engine.kernels.launching import compiling
from petalite.engine.kernels.ready import get_ready


def test_a_kernel_is_compiled_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, torch.device]] = []

    def compile_together(runs: Iterable[Callable[[], object]], device: torch.device) -> None:
        asked.append((len(list(runs)), device))

    monkeypatch.setattr(ready, "compile_together", compile_together)
    get_ready(torch.device("cuda", 1)).join()
    assert asked == [(1, torch.device("cuda", 1))]


def test_what_fails_is_for_the_first_kernel_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: 1 / 0)  # no GPU, no driver, no compiler
    get_ready(torch.device("cuda", 0)).join()
    assert not compiling()


def test_on_a_cpu_there_is_nothing_to_do() -> None:
    thread = get_ready(torch.device("cpu"))
    thread.join(timeout=30)
    assert not thread.is_alive()
