"""What the profiler takes: measured, never less than nothing, and a kernel's without that of its operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from petalite.profiling import cost as room
from petalite.profiling.cost import Cost

CPU = torch.device("cpu")


def test_on_a_cpu_operators_take_time_and_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_GROUPS": 1, "_LARGE": 4, "_SMALL": 8}.items():
        monkeypatch.setattr(room, name, value)
    cost = Cost(CPU, replayed=False)
    cost.round()
    assert len(cost.operators_us) == 1 and cost.kernels_us == []
    assert cost.operator_us() >= 0 and cost.kernel_us() == 0


def test_the_median_of_the_rounds_counts_and_is_never_below_zero() -> None:
    cost = Cost(CPU, replayed=False)
    assert cost.operator_us() == 0
    cost.operators_us = [-1.0, -3.0, 2.0]
    assert cost.operator_us() == 0
    cost.operators_us = [0.2, 9.0, 0.4]
    assert cost.operator_us() == 0.4


def test_a_kernels_cost_is_what_its_operators_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = Cost(CPU, replayed=False)
    operators, kernels = (lambda: None), (lambda: None)
    cost._operators, cost._kernels = operators, kernels
    longer: dict[Callable[[], object], tuple[float, int, int]] = {
        operators: (100.0, 200, 0),
        kernels: (500.0, 200, 100),
    }
    monkeypatch.setattr(cost, "_longer", longer.__getitem__)
    cost.round()
    assert (cost.operator_us(), cost.kernel_us()) == (0.5, 4.0)
