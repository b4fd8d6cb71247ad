"""Energy from a counter that pretends, and a reason wherever there is none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from petalite.measure.latency import nothing
from petalite.profiling import energy
from petalite.profiling.energy import measure_energy

GPU = torch.device("cuda", 0)


class NVMLError(Exception):
    """As NVML's bindings have it."""


def pretend(monkeypatch: pytest.MonkeyPatch, readings: list[float] | Exception) -> list[str]:
    """NVML with a counter in millijoules, and a GPU by UUID; returns what was opened and closed."""
    calls: list[str] = []

    def read(handle: str) -> float:
        assert handle == "handle of GPU-1234"
        if isinstance(readings, Exception):
            raise readings
        return readings.pop(0)

    library = SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: calls.append("open"), nvmlShutdown=lambda: calls.append("closed"),
        nvmlDeviceGetHandleByUUID=lambda name: f"handle of {name}", nvmlDeviceGetTotalEnergyConsumption=read,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234"))
    return calls


def test_joules_of_the_counter_are_shared_among_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pretend(monkeypatch, [1_000_000, 1_900_000])
    times = iter([10.0, 13.0])
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    monkeypatch.setattr(energy, "count_forwards", lambda *_, **__: 50.0)
    found = measure_energy(nothing, nothing, GPU, 8, nothing)
    assert found == {"joules_per_image": 900 / 1200, "watts": 300.0, "images": 1200, "seconds": 3.0}
    assert calls == ["open", "closed"]


def test_a_gpu_without_a_counter_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pretend(monkeypatch, NVMLError("Not Supported"))
    assert "Not Supported" in measure_energy(nothing, nothing, GPU, 1, nothing)["reason"]
    assert calls == ["open", "closed"]


def test_without_bindings_or_without_a_gpu_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py" in measure_energy(nothing, nothing, GPU, 1, nothing)["reason"]
    assert "NVIDIA GPUs only" in measure_energy(nothing, nothing, torch.device("cpu"), 1, nothing)["reason"]
