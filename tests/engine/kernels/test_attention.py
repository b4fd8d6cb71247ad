"""Attention in one pass against float64: any number of tokens and channels, merged tokens, codes, extremes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from petalite.attention import math
from petalite.engine.kernels.attention import Config, attention, configs, pieces
from tests.engine.kernels.codes import FP8, INT8, assert_written

#: All keys at once, for all queries and shared out; streamed.
CUTS = [
    Config(64, 4),
    Config(64, 4, parts=2, stages=1),
    Config(32, 4, parts=3),
    Config(128, 8),
    Config(64, 4, block=64),
    Config(32, 4, block=128),
]
#: float32 shows that the formula is right, and is refused on a GPU.
GIVEN = [torch.float16] if torch.cuda.is_available() else [torch.float16, torch.float32]
KINDS = pytest.mark.parametrize("dtype", GIVEN, ids=str)
HALF = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 2e-6}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(qkv: Tensor, heads: int, sizes: Tensor | None = None) -> Tensor:
    """(B·N, H·D) in float64."""
    B, N, _ = qkv.shape
    query, key, value = qkv.double().view(B, N, 3, heads, -1).permute(2, 0, 3, 1, 4)
    bias = None if sizes is None else sizes.double().log()[:, None, None]
    return math(query, key, value, bias).transpose(1, 2).reshape(B * N, -1)


def some_sizes(B: int, N: int, device: torch.device) -> Tensor:
    """Most tokens stand for one, a few for many."""
    sizes = torch.ones(B, N)
    sizes[:, ::3] = 150.0
    sizes[:, ::5] = 7.0
    return sizes.to(device)


def close(found: Tensor, wanted: Tensor, bound: float) -> bool:
    return bool((found.double() - wanted).norm() <= bound * wanted.norm())


@KINDS
@pytest.mark.parametrize("config", CUTS, ids=str)
@pytest.mark.parametrize("tokens", [1, 16, 37, 130, 197])
def test_every_number_of_tokens(device: torch.device, tokens: int, config: Config, dtype: torch.dtype) -> None:
    B, H, D = 2, 2, 16
    qkv = numbers(B, tokens, 3 * H * D).to(device, dtype)
    assert close(attention(qkv, H, dtype=torch.float32, config=config), exact(qkv, H), HALF[dtype])


@KINDS
@pytest.mark.parametrize("heads_and_size", [(1, 32), (3, 48), (2, 64), (1, 80), (1, 128)], ids=str)
def test_every_size_of_heads(device: torch.device, heads_and_size: tuple[int, int], dtype: torch.dtype) -> None:
    H, D = heads_and_size
    qkv = numbers(1, 50, 3 * H * D).to(device, dtype)
    for config in (CUTS[1], CUTS[4]):
        assert close(attention(qkv, H, dtype=torch.float32, config=config), exact(qkv, H), HALF[dtype])


@KINDS
@pytest.mark.parametrize("config", CUTS, ids=str)
def test_a_key_counts_for_all_it_stands_for(device: torch.device, config: Config, dtype: torch.dtype) -> None:
    B, N, H, D = 2, 101, 2, 16
    qkv, sizes = numbers(B, N, 3 * H * D).to(device, dtype), some_sizes(2, N, device)
    found = attention(qkv, H, dtype=torch.float32, sizes=sizes, config=config)
    assert close(found, exact(qkv, H, sizes), HALF[dtype])
    assert not close(found, exact(qkv, H), 0.05)
    alone = attention(qkv, H, dtype=torch.float32, sizes=torch.ones_like(sizes), config=config)
    assert close(alone, exact(qkv, H), HALF[dtype])


def test_longer_sequences_are_streamed(device: torch.device) -> None:
    for N in (257, 300, 577):
        qkv = numbers(1, N, 3 * 16).to(device, torch.float16)
        for sizes in (None, some_sizes(1, N, device)):
            assert close(attention(qkv, 1, dtype=torch.float32, sizes=sizes), exact(qkv, 1, sizes), 1e-3)
    with pytest.raises(ValueError, match="256 do"):
        attention(qkv, 1, dtype=torch.float32, config=Config())


@pytest.mark.parametrize("config", [CUTS[0], CUTS[4]], ids=str)
@pytest.mark.parametrize("written", [FP8, INT8], ids=["fp8", "int8"])
def test_codes_are_the_nearest(device: torch.device, written: torch.dtype, config: Config) -> None:
    qkv = numbers(2, 50, 3 * 32).to(device, GIVEN[-1])
    step = torch.tensor([0.004], device=device)  # some outputs lie beyond the largest code of int8
    wanted = exact(qkv, 2)
    codes = attention(qkv, 2, dtype=written, scale=step, config=config)
    assert_written(codes, step, wanted, 1e-6 if GIVEN[-1] == torch.float32 else 2e-3)
    assert (wanted.abs() > 127 * step).any()


@pytest.mark.parametrize("merged", [False, True], ids=["", "merged"])
@pytest.mark.parametrize("config", [CUTS[0], CUTS[2], CUTS[4], CUTS[5]], ids=str)
@pytest.mark.parametrize("heads_and_size", [(2, 32), (1, 64), (1, 96)], ids=str)
def test_queries_keys_and_values_in_codes(
    device: torch.device, heads_and_size: tuple[int, int], config: Config, merged: bool
) -> None:
    """Nothing is lost but what rounding to codes has lost before."""
    (H, D), step = heads_and_size, torch.tensor([0.02], device=device)
    codes = (numbers(2, 101, 3 * H * D).to(device) / step).to(FP8)
    sizes = some_sizes(2, 101, device) if merged else None
    found = attention(codes, H, step=step, dtype=torch.float32, sizes=sizes, config=config)
    wanted = exact(codes.double() * step.double(), H, sizes)
    assert close(found, wanted, 1e-3)
    out_step = torch.tensor([0.01], device=device)
    written = attention(codes, H, step=step, dtype=FP8, scale=out_step, sizes=sizes, config=config)
    assert_written(written, out_step, wanted, 2e-3)


def test_codes_need_their_step_and_whole_groups_of_channels(device: torch.device) -> None:
    codes, step = numbers(1, 9, 3 * 32).to(device).to(FP8), torch.ones(1, device=device)
    with pytest.raises(ValueError, match="needs a step"):
        attention(codes, 1, dtype=torch.float16)
    with pytest.raises(ValueError, match="takes no step"):
        attention(codes.half(), 1, step=step, dtype=torch.float16)
    with pytest.raises(ValueError, match="32 channels at a time, and heads have 16"):
        attention(codes, 2, step=step, dtype=torch.float16)


@KINDS
@pytest.mark.parametrize("config", [CUTS[0], CUTS[1], CUTS[4]], ids=str)
def test_scores_of_any_size(device: torch.device, config: Config, dtype: torch.dtype) -> None:
    """Softmax becomes a choice of one key: also where all scores are far below zero, and without overflow."""
    N, D = 70, 16
    qkv = numbers(1, N, 3 * D).to(device, dtype)
    for factor in (0.0, 60.0, -60.0):
        scaled = qkv.clone()
        scaled[..., :D] *= factor
        if factor < 0:
            scaled[..., :D], scaled[..., D : 2 * D] = -60.0, 60.0  # every score is -3,600 · 16 / 4
        found = attention(scaled, 1, dtype=torch.float32, config=config)
        assert found.isfinite().all()
        assert close(found, exact(scaled, 1), 5e-3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of what is not a number
def test_images_and_heads_do_not_mix(device: torch.device) -> None:
    """What one image or one head holds, were it not even a number, changes no other."""
    B, N, H, D = 3, 37, 2, 16
    qkv = numbers(B, N, 3 * H * D).to(device, torch.float16)
    spoiled = qkv.clone()
    spoiled[1] = torch.inf
    spoiled[0].view(N, 3, H, D)[:, :, 1] = torch.nan
    for config in (CUTS[0], CUTS[2], CUTS[4]):
        wanted = attention(qkv, H, dtype=torch.float16, config=config).view(B, N, H, D)
        found = attention(spoiled, H, dtype=torch.float16, config=config).view(B, N, H, D)
        assert torch.equal(found[2], wanted[2]) and torch.equal(found[0, :, 0], wanted[0, :, 0])


def test_constant_values_pass_unchanged(device: torch.device) -> None:
    qkv = numbers(1, 50, 3 * 16).to(device, torch.float16)
    qkv[..., 32:] = 3.0
    assert close(attention(qkv, 1, dtype=torch.float32), torch.full((50, 16), 3.0, device=device).double(), 1e-3)


def test_no_images(device: torch.device) -> None:
    assert attention(torch.empty(0, 5, 48, device=device, dtype=torch.float16), 1, dtype=torch.float16).shape == (0, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.ones(2, 5, 3 * 32, dtype=torch.int32)}, "floating-point"),
        ({"qkv": torch.ones(5, 2, 3 * 32).transpose(0, 1)}, "contiguous"),
        ({"qkv": torch.ones(2, 5, 3 * 24)}, "multiple of 16"),
        ({"qkv": torch.ones(2, 5, 3 * 288)}, "16 to 128"),
        ({"dtype": torch.float64}, "cannot write"),
        ({"dtype": FP8}, "needs a scale"),
        ({"scale": torch.ones(1)}, "takes no scale"),
        ({"dtype": INT8, "scale": torch.ones(2)}, "one float32"),
        ({"sizes": torch.ones(2, 4)}, "sizes are"),
        ({"sizes": torch.ones(2, 5).double()}, "sizes are"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"qkv": torch.ones(2, 5, 3 * 32), "dtype": torch.float32, **change}
    with pytest.raises(ValueError, match=message):
        attention(given.pop("qkv"), 2, **given)


def test_pieces_hold_the_keys_with_little_to_spare() -> None:
    assert pieces(197) == (128, 64, 16)
    for tokens in range(1, 257):
        found = [piece for piece in pieces(tokens) if piece]
        assert tokens <= sum(found) < max(tokens + 16, tokens * 1.15 + 1)
        assert found == sorted(set(found), reverse=True)
        assert all(piece >= 16 and piece.bit_count() == 1 for piece in found)


@pytest.mark.parametrize("tokens", [5, 50, 197, 257, 577, 1024])
@pytest.mark.parametrize("batch", [1, 8, 256])
def test_the_lists_are_short_and_fit(batch: int, tokens: int) -> None:
    found = configs(batch, tokens, 16, 64)
    assert 1 <= len(found) <= 8 and len({str(config) for config in found}) == len(found)
    assert all(config.block or tokens <= 256 for config in found)
    assert not found[0].dependent
    assert all(1 <= config.parts <= max(2, -(-tokens // config.rows)) for config in found)


def test_small_shared_memory_is_not_overrun() -> None:
    assert all(config.block for config in configs(8, 197, 16, 128, 99 * 1024))
    assert configs(8, 577, 16, 128, 64 * 1024)[0].rows == 64  # on a T4 more do not fit
    found = configs(8, 197, 16, 64, 99 * 1024)
    assert not found[0].block and not any(config.dependent for config in found)
