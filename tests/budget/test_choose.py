"""The integer program against trying everything."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest

from petalite.budget.choose import choose, total


def tables(seed: int, layers: int = 5) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    random = np.random.default_rng(seed)
    names = [f"layer{index}" for index in range(layers)]
    cost = {
        name: {"a": 8 * width, "b": 4 * width, "c": 3 * width}
        for name, width in zip(names, random.integers(1, 9, layers) * 1000.0, strict=True)
    }
    damage = {name: dict(zip("abc", sorted(random.gamma(1.0, 0.01, 3)), strict=True)) for name in names}
    return damage, cost


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("most", [0.005, 0.03, 0.1, 10.0])
def test_no_other_choice_is_cheaper_within_the_bound(seed: int, most: float) -> None:
    damage, cost = tables(seed)
    everything = [dict(zip(cost, picks, strict=True)) for picks in itertools.product("abc", repeat=len(cost))]
    allowed = [picks for picks in everything if total(damage, picks) <= most]
    found = choose(damage, cost, most)
    if not allowed:
        assert found is None
        return
    assert found is not None and total(damage, found) <= most * (1 + 1e-6)
    assert total(cost, found) == pytest.approx(min(total(cost, picks) for picks in allowed), rel=1e-3)


def test_damages_below_zero_count_as_none() -> None:
    damage = {"x": {"a": -5.0, "b": 0.02}, "y": {"a": 0.0, "b": 0.02}}
    cost = {"x": {"a": 2.0, "b": 1.0}, "y": {"a": 2.0, "b": 1.0}}
    assert choose(damage, cost, 0.03) in ({"x": "b", "y": "a"}, {"x": "a", "y": "b"})


def test_a_bound_of_nothing_leaves_what_does_no_damage() -> None:
    damage, cost = {"x": {"a": 0.0, "b": 1e-9}}, {"x": {"a": 2.0, "b": 1.0}}
    assert choose(damage, cost, 0.0) == {"x": "a"}
    assert choose({"x": {"b": 1e-9}}, {"x": {"b": 1.0}}, 0.0) is None


def test_what_the_solver_prints_is_not_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import scipy.optimize

    solve = scipy.optimize.milp

    def talkative(*args: Any, **options: Any) -> Any:
        os.write(1, b"a note of the solver\n")
        return solve(*args, **options)

    monkeypatch.setattr(scipy.optimize, "milp", talkative)
    assert choose(*tables(0), 0.03) is not None
    print("the document")
    out, err = capfd.readouterr()
    assert (out, err) == ("the document\n", "a note of the solver\n")
