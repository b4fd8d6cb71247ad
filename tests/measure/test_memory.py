"""Peak memory rises with what is taken, stays when it is given back, and can start anew."""

from __future__ import annotations

import sys

import pytest
import torch

from petalite.measure import memory

CPU = torch.device("cpu")
SIZE = 300_000_000


def test_the_peak_of_a_cpu_is_the_resident_set() -> None:
    before = memory.peak(CPU)
    block = torch.ones(SIZE, dtype=torch.uint8)  # ones, so that the pages are really taken
    del block
    after = memory.peak(CPU)
    assert before["kind"] == after["kind"] == "rss"
    assert after["peak_bytes"] >= max(before["peak_bytes"], SIZE)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its peak")
def test_a_reset_forgets_what_was_given_back() -> None:
    block = torch.ones(SIZE, dtype=torch.uint8)
    high = memory.peak_rss_bytes()
    del block
    if not memory.reset_peak(CPU):
        pytest.skip("this system does not let a process reset its peak")
    assert memory.peak_rss_bytes() < high - SIZE // 2


def test_without_proc_the_systems_own_count_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    reported = memory.peak_rss_bytes()
    monkeypatch.setattr(memory, "_STATUS", memory.Path(str(tmp_path)) / "absent")
    monkeypatch.setattr(memory, "_CLEAR_REFS", memory.Path(str(tmp_path)) / "absent" / "file")
    assert memory.peak_rss_bytes() >= 0.5 * reported
    assert memory.reset_peak(CPU) is False
