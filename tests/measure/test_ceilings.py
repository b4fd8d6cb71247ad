"""Ceilings: every way multiplies what it says, the quickest is named, and what cannot run is an error."""

from __future__ import annotations

import pytest
import torch

from petalite.measure import ceilings
from petalite.measure.ceilings import copied_bytes_per_s, product_flops, quickest_product

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_every_way_gives_a_product_of_the_shape(precision: str) -> None:
    builders = ceilings._builders(precision, CPU)
    assert len(builders) == (2 if precision == "int8" else 1)
    for build in builders.values():
        result = build(24, 32, 48, CPU)()
        assert isinstance(result, torch.Tensor) and result.shape == (24, 48)


def test_the_quickest_way_is_named_and_others_that_cannot_run_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"slow": 2.0, "quick": 0.5}

    def refused(*_: object) -> None:
        raise RuntimeError("not here")

    builders = {"slow": lambda *_: "slow", "refused": refused, "quick": lambda *_: "quick"}
    monkeypatch.setattr(ceilings, "_builders", lambda *_: builders)
    monkeypatch.setattr(ceilings, "_seconds", lambda call, *_: seconds[call])
    assert quickest_product("int8", 1, 1, 1, CPU) == ("quick", 0.5)
    monkeypatch.setattr(ceilings, "_builders", lambda *_: {"refused": refused})
    with pytest.raises(RuntimeError, match="no product in int8 runs on cpu: not here"):
        quickest_product("int8", 1, 1, 1, CPU)


def test_a_product_is_a_multiplication_and_an_addition_each() -> None:
    assert product_flops(2, 3, 5) == 60


def test_copied_bytes_are_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_COPIED_BYTES", {"cpu": 1000})
    monkeypatch.setattr(ceilings, "_seconds", lambda call, *_: 2.0)
    assert copied_bytes_per_s(CPU) == 1000
