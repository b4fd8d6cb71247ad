"""Timing on a clock that the test holds: what is counted, what is waited for, when it ends."""

from __future__ import annotations

import pytest

from petalite.measure import latency


class Clock:
    """Time that passes only while a pass runs on the pretended device, or is launched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, launch_s: float, run_s: float) -> None:
        self.now, self.queued, self.passes, self.waits = 0.0, 0.0, 0, 0
        self.launch_s, self.run_s = launch_s, run_s
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)

    def forward(self) -> None:
        self.passes += 1
        self.now += self.launch_s
        self.queued += self.run_s

    def wait(self) -> None:
        self.waits += 1
        self.now += self.queued
        self.queued = 0.0


def test_a_sample_holds_the_launch_and_the_end_of_the_device_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, launch_s=0.001, run_s=0.009)
    samples = latency.time_forwards(clock.forward, clock.wait, samples=5, seconds=0.0)
    assert samples == pytest.approx([10.0] * 5)
    assert clock.passes == 7  # two were not counted


def test_seconds_go_on_beyond_the_samples_and_samples_beyond_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, launch_s=0.0, run_s=0.1)
    assert len(latency.time_forwards(clock.forward, clock.wait, samples=2, seconds=0.95)) == 10
    assert len(latency.time_forwards(clock.forward, clock.wait, samples=30, seconds=0.95)) == 30


def test_progress_is_outside_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, launch_s=0.0, run_s=0.1)

    def slow() -> None:
        clock.now += 5.0

    assert latency.time_forwards(clock.forward, clock.wait, samples=3, seconds=0.0, progress=slow) == pytest.approx(
        [100.0] * 3
    )


def test_throughput_queues_passes_and_counts_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, launch_s=0.0, run_s=0.01)
    assert latency.count_forwards(clock.forward, clock.wait, seconds=1.0) == pytest.approx(100.0)
    assert clock.waits < clock.passes / 5


def test_throughput_of_a_slow_model_still_takes_three_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, launch_s=0.0, run_s=7.0)
    assert latency.count_forwards(clock.forward, clock.wait, seconds=1.0) == pytest.approx(1 / 7)
    assert clock.passes == 4


def test_warm_up_reaches_both_its_goals(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, launch_s=0.0, run_s=0.1)
    latency.warm_up(clock.forward, clock.wait, passes=2, seconds=0.45)
    assert clock.passes == 5
    latency.warm_up(clock.forward, clock.wait, passes=9, seconds=0.0)
    assert clock.passes == 14


def test_an_entry_is_the_contracts_latency_block() -> None:
    entry = latency.latency_entry(8, [1.0, 2.0, 3.0])
    assert entry == {"batch_size": 8, "mean_ms": 2.0, "p50_ms": 2.0, "p95_ms": 2.9, "p99_ms": 2.98, "samples": 3}
