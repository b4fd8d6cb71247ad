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


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8"])
def test_of_cublaslts_ranking_the_quickest_counts(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    asked: list[tuple[str, torch.dtype, torch.dtype]] = []

    def multiply(a: torch.Tensor, w: torch.Tensor, out: torch.Tensor, algorithm: str, **rest: torch.Tensor) -> str:
        assert a.shape == (24, 32) and w.shape == (48, 32) and out.shape == (24, 48)
        assert (rest["scale"] is not None) == (precision == "fp8")
        asked.append((algorithm, a.dtype, out.dtype))
        return algorithm

    monkeypatch.setattr(ceilings.cublaslt, "available", lambda: None)
    monkeypatch.setattr(ceilings.cublaslt, "algorithms", lambda *_, most: ["first", "second", "third"][:most])
    monkeypatch.setattr(ceilings.cublaslt, "multiply", multiply)
    seconds = {"first": 3.0, "second": 1.0, "third": 2.0}
    monkeypatch.setattr(ceilings, "_seconds", lambda call, *_: seconds[call()])
    build = ceilings._builders(precision, torch.device("cuda"))["cublasLt"]
    assert build(24, 32, 48, CPU)() == "second"
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}[precision]
    assert set(asked) == {(name, dtype, torch.bfloat16 if precision == "fp8" else dtype) for name in seconds}


def test_where_cublaslt_cannot_be_called_the_other_way_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings.cublaslt, "available", lambda: "this PyTorch has no CUDA")
    with pytest.raises(RuntimeError, match="no CUDA"):
        ceilings._builders("fp8", torch.device("cuda"))["cublasLt"](24, 32, 48, CPU)
    assert list(ceilings._builders("fp32", torch.device("cuda"))) == ["torch.mm"]


def test_a_product_is_a_multiplication_and_an_addition_each() -> None:
    assert product_flops(2, 3, 5) == 60


def test_copied_bytes_are_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_COPIED_BYTES", {"cpu": 1000})
    monkeypatch.setattr(ceilings, "_seconds", lambda call, *_: 2.0)
    assert copied_bytes_per_s(CPU) == 1000
