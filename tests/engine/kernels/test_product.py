"""A product and all that its end does against float64, however it is cut, whatever the operands hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from petalite.engine.kernels import tiled
from petalite.engine.kernels.product import product
from petalite.engine.kernels.tiles import Config, configs, default, tiles
from tests.engine.kernels.codes import FP8, INT8, assert_written

#: Small enough for Triton's interpreter; none divides the shapes below.
TILES = [
    Config(32, 64, 32, stages=2),
    Config(64, 32, 64, stages=2, engine=False),
    Config(32, 32, 64, stages=2, split=2),
    Config(64, 64, 32, stages=2, split=4, engine=False, band=1),
    Config(64, 64, 64, stages=2, resident=1, pieces=2, band=2),
    Config(64, 64, 32, stages=2, resident=2, pieces=4, engine=False),
]
#: M, N, K. An odd number of columns cannot be written by the copy engine.
SHAPES = [(1, 16, 16), (70, 80, 112), (33, 45, 48), (130, 208, 16)]
FACTORS = pytest.mark.parametrize("dtype", [FP8, INT8, torch.float16], ids=["fp8", "int8", "fp16"])
CUTS = pytest.mark.parametrize("config", TILES, ids=str)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factor(rows: int, depth: int, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    values = numbers(rows, depth, seed=seed)
    return (values * 40).round().clamp(-127, 127).to(device, dtype) if dtype == INT8 else values.to(device, dtype)


def ends(M: int, N: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Scales that bring the results near 1, a bias, a residual."""
    step = 1e-3 if dtype == INT8 else 0.1
    made = {
        "a_scale": step * (0.5 + torch.rand(M, generator=torch.Generator().manual_seed(3))),
        "w_scale": 0.5 + torch.rand(N, generator=torch.Generator().manual_seed(4)),
        "bias": numbers(N, seed=5),
        "residual": numbers(M, N, seed=6),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


def exact(
    a: Tensor,
    w: Tensor,
    a_scale: Tensor | None = None,
    w_scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """What `product` should give, in float64."""
    y = a.double() @ w.double().mT
    y = y if a_scale is None else y * a_scale.double().view(-1, 1)
    y = y if w_scale is None else y * w_scale.double()
    y = y if bias is None else y + bias.double()
    y = F.gelu(y) if activation else y
    return y if residual is None else y + residual.double()


def close(found: Tensor, wanted: Tensor, bound: float) -> bool:
    return bool((found.double() - wanted).norm() <= bound * wanted.norm())


@CUTS
@FACTORS
def test_all_that_the_end_does(device: torch.device, dtype: torch.dtype, config: Config) -> None:
    for M, N, K in SHAPES:
        a, w = factor(M, K, dtype, device, 0), factor(N, K, dtype, device, 1)
        rest: dict[str, Any] = {**ends(M, N, dtype, device), "activation": "gelu"}
        y = product(a, w, **rest, dtype=torch.float32, config=config)
        assert y.shape == (M, N) and y.dtype == torch.float32
        # Hopper's tensor cores keep 14 bits of float8 sums
        assert close(y, exact(a, w, **rest), 1e-3 if dtype == FP8 else 2e-5), (M, N, K)


@FACTORS
@pytest.mark.parametrize("left_out", ["a_scale", "w_scale", "bias", "residual", "activation"])
def test_each_part_of_the_end_is_optional(device: torch.device, dtype: torch.dtype, left_out: str) -> None:
    M, N, K = SHAPES[1]
    a, w = factor(M, K, dtype, device, 0), factor(N, K, dtype, device, 1)
    rest: dict[str, Any] = {**ends(M, N, dtype, device), "activation": "gelu"}
    del rest[left_out]
    for config in TILES[:2]:
        y = product(a, w, **rest, dtype=torch.float32, config=config)
        assert close(y, exact(a, w, **rest), 1e-3 if dtype == FP8 else 2e-5)


def test_one_scale_for_all_rows(device: torch.device) -> None:
    M, N, K = SHAPES[1]
    a, w = factor(M, K, INT8, device, 0), factor(N, K, INT8, device, 1)
    scale = torch.tensor([0.003], device=device)
    for given in (scale, scale[0]):
        y = product(a, w, a_scale=given, dtype=torch.float32, config=TILES[0])
        assert close(y, exact(a, w, scale), 1e-6)


@FACTORS
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("written", [FP8, INT8], ids=["to fp8", "to int8"])
def test_codes_are_the_nearest(
    device: torch.device, dtype: torch.dtype, activation: str | None, written: torch.dtype
) -> None:
    M, N, K = SHAPES[1]
    a, w = factor(M, K, dtype, device, 0), factor(N, K, dtype, device, 1)
    given = ends(M, N, dtype, device)
    rest: dict[str, Any] = {name: given[name] for name in ("a_scale", "w_scale", "bias")}
    step = torch.tensor([0.02], device=device)  # some lie beyond the largest code of int8
    for config in TILES[:5]:
        codes = product(a, w, **rest, activation=activation, dtype=written, out_scale=step, config=config)
        wanted = exact(a, w, **rest, activation=activation)
        assert_written(codes, step, wanted, 5e-3 if dtype == FP8 and device.type == "cuda" else 1e-5)


@FACTORS
def test_plain_results_are_rounded_once(device: torch.device, dtype: torch.dtype) -> None:
    M, N, K = SHAPES[2]
    a, w = factor(M, K, dtype, device, 0), factor(N, K, dtype, device, 1)
    scale = ends(M, N, dtype, device)["a_scale"]
    for written in (torch.bfloat16, torch.float16):
        y = product(a, w, a_scale=scale, dtype=written, config=TILES[0])
        assert_written(y, None, exact(a, w, scale), 5e-3 if dtype == FP8 and device.type == "cuda" else 1e-4)


def test_int8_sums_are_exact(device: torch.device) -> None:
    """Beyond the 24 bits of float32, and with the sum split."""
    K = 2064
    a = torch.full((3, K), 127, dtype=INT8, device=device)
    a[1], a[2, ::2] = -127, 126
    w = torch.full((16, K), 127, dtype=INT8, device=device)
    wanted = a.double() @ w.double().mT
    assert wanted.abs().max() > 2**24
    for config in (TILES[0], TILES[2], TILES[3]):
        assert torch.equal(product(a, w, dtype=torch.float32, config=config), wanted.float())


@pytest.mark.parametrize("config", [config for config in TILES if config.split > 1], ids=str)
@FACTORS
def test_split_sums_give_the_same_bits_each_time(device: torch.device, dtype: torch.dtype, config: Config) -> None:
    M, N, K = 70, 80, 272
    a, w = factor(M, K, dtype, device, 0), factor(N, K, dtype, device, 1)
    first = product(a, w, dtype=torch.float32, config=config)
    assert close(first, exact(a, w), 1e-3 if dtype == FP8 else 1e-5)
    for _ in range(3):
        assert torch.equal(product(a, w, dtype=torch.float32, config=config), first)
    assert not tiled.counters(a.device).counters.any()


def test_more_parts_than_depths(device: torch.device) -> None:
    a, w = factor(40, 16, INT8, device, 0), factor(48, 16, INT8, device, 1)
    y = product(a, w, dtype=torch.float32, config=Config(32, 32, 32, stages=2, split=4))
    assert torch.equal(y, exact(a, w).float())


@CUTS
def test_zeros_and_large_values(device: torch.device, config: Config) -> None:
    M, N, K = SHAPES[1]
    a, w = torch.zeros(M, K, device=device).to(FP8), torch.full((N, K), 448.0, device=device).to(FP8)
    bias = numbers(N).to(device)
    step = torch.tensor([0.5], device=device)
    assert torch.equal(product(a, w, bias=bias, dtype=torch.float32, config=config), bias.expand(M, N))
    a[::2] = 448.0
    a[1] = -448.0
    for written, largest in ((FP8, 448), (INT8, 127)):
        codes = product(a, w, dtype=written, out_scale=step, config=config).float()
        assert (codes[::2] == largest).all() and (codes[1] == -largest).all() and not codes[3::2].any()


def test_no_rows(device: torch.device) -> None:
    y = product(torch.empty(0, 32, device=device).half(), torch.empty(8, 32, device=device).half(), dtype=torch.float16)
    assert y.shape == (0, 8)


def call(device: torch.device, **changes: Any) -> Tensor:
    given: dict[str, Any] = {
        "a": torch.ones(4, 32, dtype=INT8, device=device),
        "w": torch.ones(16, 32, dtype=INT8, device=device),
        "dtype": torch.float16,
    }
    given.update(changes)
    return product(given.pop("a"), given.pop("w"), **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"a": torch.ones(4, 32, device=d)}, "both float8_e4m3fn"),
        (lambda d: {"w": torch.ones(16, 48, dtype=INT8, device=d)}, "both float8_e4m3fn"),
        (lambda d: {name: torch.ones(4, 24, dtype=INT8, device=d) for name in "aw"}, "multiple of 16"),
        (lambda d: {"activation": "relu"}, "gelu"),
        (lambda d: {"dtype": torch.float64}, "cannot write"),
        (lambda d: {"dtype": FP8}, "needs an out_scale"),
        (lambda d: {"out_scale": torch.ones(1, device=d)}, "takes no out_scale"),
        (lambda d: {"a_scale": torch.ones(3, device=d)}, "a_scale"),
        (lambda d: {"w_scale": torch.ones(4, device=d)}, "w_scale"),
        (lambda d: {"bias": torch.ones(4, device=d)}, "bias"),
        (lambda d: {"residual": torch.ones(4, 8, device=d)}, "residual"),
        (lambda d: {"a": torch.ones(32, 4, dtype=INT8, device=d).mT}, "contiguous"),
        (lambda d: {"a": torch.ones(4 * 32 + 8, dtype=INT8, device=d)[8:].view(4, 32)}, "multiples of 16 bytes"),
    ],
)
def test_what_does_not_fit_is_refused(
    device: torch.device, change: Callable[[torch.device], dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(device, **change(device))


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0)], ids=str)
@pytest.mark.parametrize("rows", [1, 197, 8 * 197, 256 * 197])
def test_the_lists_are_short_and_fit(rows: int, capability: tuple[int, int]) -> None:
    for dtype in (FP8, INT8, torch.bfloat16):
        for columns, depth in ((3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096), (1000, 192), (64, 48)):
            found = configs(rows, columns, depth, dtype, capability)
            assert 1 <= len(found) <= 8
            assert len({str(config) for config in found}) == len(found)
            assert default(rows, columns, depth, dtype, capability) in found
            for config in found:
                fitting = 99 if capability < (9, 0) else 227
                assert config.stages * (config.rows + config.columns) * config.depth <= fitting * 1024
                assert config.split == 1 or config.resident == 0
            assert not default(rows, columns, depth, dtype, capability).dependent


def test_few_rows_fill_the_gpu(device: torch.device) -> None:
    for columns, depth in ((1024, 1024), (1024, 4096)):
        best = default(197, columns, depth, FP8, (9, 0))
        assert tiles(best, 197, columns) * best.split >= 44


def test_names_tell_configs_apart() -> None:
    base = Config(64, 64)
    changed = [
        replace(base, rows=32), replace(base, columns=32), replace(base, depth=64), replace(base, warps=8),
        replace(base, stages=3), replace(base, split=2), replace(base, band=4), replace(base, resident=1),
        replace(base, pieces=2), replace(base, engine=False),
        replace(base, dependent=True),
    ]  # fmt: skip
    assert len({str(config) for config in [base, *changed]}) == len(changed) + 1
