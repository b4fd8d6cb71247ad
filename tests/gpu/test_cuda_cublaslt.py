"""cuBLASLt, called directly, against float64: every algorithm that it ranks, with all that may follow a product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from petalite.engine import cublaslt
from petalite.engine.cublaslt import algorithms, multiply

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FP8, BF16, FP16 = torch.float8_e4m3fn, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def _available() -> None:
    if reason := cublaslt.available():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def operands(M: int, N: int, K: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator(device).manual_seed(M + N + K)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    sixteen = BF16 if dtype == FP8 else dtype
    return {
        "a": draw(M, K).to(dtype),
        "w": (draw(N, K) * (1 if dtype == FP8 else K**-0.5)).to(dtype),
        "bias": draw(N).to(sixteen),
        "residual": draw(M, N).to(sixteen),
    }


def exact(a: Tensor, w: Tensor, scale: float, bias: Tensor | None, residual: Tensor | None, gelu: bool) -> Tensor:
    y = a.double() @ w.double().mT * scale
    y = y if bias is None else y + bias.double()
    y = F.gelu(y) if gelu else y
    return y if residual is None else y + residual.double()


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", [FP8, BF16, FP16], ids=str)
@pytest.mark.parametrize("shape", [(197, 3072, 1024), (1, 1024, 4096), (1000, 192, 768)], ids=str)
@pytest.mark.parametrize("ends", ["", "bias", "bias residual", "bias gelu", "residual"])
def test_every_algorithm_computes_the_product(
    device: torch.device, shape: tuple[int, int, int], dtype: torch.dtype, ends: str
) -> None:
    found = operands(*shape, dtype, device)
    a, w = found["a"], found["w"]
    some: dict[str, Any] = {name: found[name] for name in ("bias", "residual") if name in ends}
    some["gelu"] = "gelu" in ends
    factor = shape[2] ** -0.5 if dtype == FP8 else 1.0
    scale = torch.tensor([factor], device=device) if dtype == FP8 else None
    out = torch.empty(shape[0], shape[1], dtype=found["bias"].dtype, device=device)
    ranked = algorithms(a, w, out, **some)
    assert ranked
    wanted = exact(a, w, factor, some.get("bias"), some.get("residual"), some["gelu"])
    for algorithm in ranked:
        assert error(multiply(a, w, out.fill_(torch.nan), algorithm, scale=scale, **some), wanted) < 4e-3


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(197, 3072, 1024), (1000, 192, 768)], ids=str)
def test_codes_are_those_of_the_product(device: torch.device, shape: tuple[int, int, int], gelu: bool) -> None:
    found = operands(*shape, FP8, device)
    factor, step = shape[2] ** -0.5, 0.02
    scale, inverse = (torch.tensor([value], device=device) for value in (factor, 1 / step))
    out = torch.empty(shape[0], shape[1], dtype=FP8, device=device)
    ranked = algorithms(found["a"], found["w"], out, bias=found["bias"], gelu=gelu)
    assert ranked
    wanted = exact(found["a"], found["w"], factor, found["bias"], None, gelu)
    for algorithm in ranked:
        multiply(found["a"], found["w"], out, algorithm, scale=scale, bias=found["bias"], gelu=gelu, out_factor=inverse)
        assert error(out.double() * step, wanted) < 0.03


def test_values_beyond_the_largest_code_become_it(device: torch.device) -> None:
    found = operands(64, 64, 128, FP8, device)
    out = torch.empty(64, 64, dtype=FP8, device=device)
    one, huge = (torch.tensor([value], device=device) for value in (1.0, 1e6))
    for algorithm in algorithms(found["a"], found["w"], out):
        multiply(found["a"], found["w"], out, algorithm, scale=one, out_factor=huge)
        assert out.float().abs().max() == 448 and out.float().isfinite().all()


def test_a_product_is_added_to_what_stands_there_also_in_a_graph(device: torch.device) -> None:
    found = operands(197, 1024, 1024, BF16, device)
    place = found["residual"].clone()
    algorithm = algorithms(found["a"], found["w"], place, residual=place)[0]

    def add() -> Tensor:
        return multiply(found["a"], found["w"], place, algorithm, residual=place)

    add()
    wanted = exact(found["a"], found["w"], 1.0, None, found["residual"], False)
    assert error(place, wanted) < 4e-3
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        add()
    place.copy_(found["residual"])
    graph.replay()
    assert error(place, wanted) < 4e-3
