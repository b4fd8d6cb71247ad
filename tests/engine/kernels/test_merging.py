"""Merging tokens in two kernels: the pairs and the order of `petalite.merging`, means against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from petalite.engine.kernels import merging as kernels
from petalite.merging import match as reference_match

#: The interpreter multiplies bfloat16 as if it were whole numbers.
PLAIN = [torch.float16, torch.float32, *([torch.bfloat16] if torch.cuda.is_available() else [])]
CASES = [(2, 197, 3, 64, 1, 16), (1, 50, 2, 16, 1, 24), (3, 9, 1, 32, 0, 4), (2, 40, 2, 80, 5, 1), (1, 3, 2, 16, 1, 1)]


def tokens(B: int, N: int, H: int, D: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(B + N + H + D)
    return torch.randn(B, N, 3 * H * D, generator=generator).to(device, dtype)


def expected_places(qkv: Tensor, heads: int, count: int, protected: int) -> Tensor:
    """Where `petalite.merging.merge_tokens` puts each token."""
    B, N, _ = qkv.shape
    key = qkv.view(B, N, 3, heads, -1)[:, :, 1].transpose(1, 2)
    order, partner = reference_match(key[:, :, protected:])
    left = protected + order.shape[1] - count
    into = torch.arange(N, device=qkv.device).repeat(B, 1)
    rank = order.argsort(1)
    into[:, protected::2] = torch.where(rank < count, left + partner, protected + rank - count)
    into[:, protected + 1 :: 2] = left + torch.arange((N - protected) // 2, device=qkv.device)
    return into.int()


def exact_means(x: Tensor, sizes: Tensor, into: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Means in float64, and the sizes."""
    N = x.shape[1]
    share = torch.nn.functional.one_hot(into.long(), N - count).double() * sizes.double()[..., None]  # B, N, left
    total = share.sum(1)
    return share.mT @ x.double() / total[..., None], total


@pytest.mark.parametrize(("B", "N", "H", "D", "protected", "count"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_same_pairs_in_the_same_order(
    device: torch.device, dtype: torch.dtype, B: int, N: int, H: int, D: int, protected: int, count: int
) -> None:
    qkv = tokens(B, N, H, D, device, dtype)
    assert torch.equal(kernels.match(qkv, H, count, protected), expected_places(qkv, H, count, protected))


def test_of_equals_the_earlier_counts(device: torch.device) -> None:
    qkv = torch.ones(1, 21, 3 * 16, device=device, dtype=torch.float16)
    assert torch.equal(kernels.match(qkv, 1, 3, 1), expected_places(qkv, 1, 3, 1))
    qkv.zero_()  # a key of zeros is like nothing
    assert torch.equal(kernels.match(qkv, 1, 3, 1), expected_places(qkv, 1, 3, 1))


@pytest.mark.parametrize(("B", "N", "H", "D", "protected", "count"), CASES)
@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_means_are_weighted_and_rounded_once(
    device: torch.device, dtype: torch.dtype, B: int, N: int, H: int, D: int, protected: int, count: int
) -> None:
    into = kernels.match(tokens(B, N, H, D, device), H, count, protected)
    x, add = (tokens(B, N, 1, size, device, dtype)[..., :65].contiguous() for size in (32, 48))
    sizes = torch.randint(1, 200, (B, N), generator=torch.Generator().manual_seed(0)).float().to(device)
    total = (x.float() + add.float()).to(dtype)
    kept = x.clone()
    found, found_sizes = kernels.merge(x, sizes, into, count, add=add)
    wanted, wanted_sizes = exact_means(total, sizes, into, count)
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2e-6}[dtype]
    assert found.shape == (B, N - count, 65) and found.dtype == dtype
    # half a step of the result, and what the float32 sum of the terms has lost
    assert bool(((found.double() - wanted).abs() <= rounding * wanted.abs() + 2e-6).all())
    assert torch.equal(found_sizes, wanted_sizes.float()) and torch.equal(x, kept)
    ones, counted = kernels.merge(total, None, into, count)
    plain, _ = exact_means(total, torch.ones_like(sizes), into, count)
    assert bool(((ones.double() - plain).abs() <= rounding * plain.abs() + 2e-6).all())
    assert counted.sum() == B * N


def test_an_image_that_is_no_number_spoils_no_other_and_stays_in_its_place(device: torch.device) -> None:
    qkv = tokens(3, 21, 1, 16, device)
    wanted = kernels.match(qkv, 1, 4, 1)
    qkv[1] = torch.nan
    into = kernels.match(qkv, 1, 4, 1)
    assert torch.equal(into[[0, 2]], wanted[[0, 2]])
    assert bool(((into >= 0) & (into < 17)).all())


def test_no_images(device: torch.device) -> None:
    into = kernels.match(tokens(1, 9, 1, 16, device)[:0], 1, 2, 1)
    x, sizes = kernels.merge(torch.empty(0, 9, 8, device=device), None, into, 2)
    assert x.shape == (0, 7, 8) and sizes.shape == (0, 7)


@pytest.mark.parametrize("memory", [64 * 1024, 99 * 1024], ids=["T4", "A10 and L4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_where_shared_memory_is_small_it_is_the_same_in_smaller_pieces(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, memory: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(kernels, "shared_bytes", lambda _: memory)
    assert kernels.takes(197, 1, 64, device) and kernels.takes(50, 1, 128, device)
    assert not kernels.takes(197, 1, 80, device)  # PyTorch's operators are left
    assert kernels._tile(512, dtype.itemsize, memory) != kernels._TILES[0]
    qkv = tokens(1, 197, 2, 64, device, dtype)
    into = kernels.match(qkv, 2, 20, 1)
    assert torch.equal(into, expected_places(qkv, 2, 20, 1))
    x = qkv[..., :80].contiguous()
    found, sizes = kernels.merge(x, None, into, 20)
    expected, total = exact_means(x, torch.ones(1, 197, device=device), into, 20)
    assert torch.equal(sizes.double(), total)
    assert (found.double() - expected).norm() / expected.norm() < (1e-6 if dtype == torch.float32 else 5e-4)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    assert not kernels.takes(300, 1, 64, device) and kernels.takes(257, 1, 64, device)
    with pytest.raises(ValueError, match="cannot merge 5"):
        kernels.match(tokens(1, 9, 1, 16, device), 1, 5, 1)
    with pytest.raises(ValueError, match="does not fit"):
        kernels.merge(torch.zeros(1, 9, 8, device=device), None, torch.zeros(1, 8, dtype=torch.int32, device=device), 2)
