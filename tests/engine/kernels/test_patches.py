"""Patches are the very pixels, less 128, in the order of a convolution's weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from petalite.engine.kernels.patches import patches


def pixels_of(shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels.view(-1)[:256] = torch.arange(256, dtype=torch.uint8)  # every value there is
    return pixels.to(device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((2, 3, 32, 32), (16, 16)),
        ((1, 3, 28, 42), (14, 14)),
        ((3, 3, 16, 24), (8, 8)),
        ((1, 3, 64, 32), (32, 32)),
        ((2, 3, 12, 10), (4, 5)),
        ((1, 3, 64, 64), (2, 1)),
        ((1, 3, 224, 224), (16, 16)),
    ],
    ids=str,
)
def test_rows_are_patches(
    device: torch.device, shape: tuple[int, int, int, int], patch: tuple[int, int], dtype: torch.dtype
) -> None:
    pixels = pixels_of(shape, device)
    found = patches(pixels, patch, dtype)
    unfolded = F.unfold(pixels.double() - 128, patch, stride=patch)  # B, 3 * ph * pw, gh * gw
    wanted = unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1])
    assert found.dtype == dtype and found.shape == wanted.shape
    assert torch.equal(found.double(), wanted)


def test_a_product_with_them_is_the_embedding(device: torch.device) -> None:
    pixels = pixels_of((2, 3, 32, 48), device)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(10, 3, 16, 16, generator=generator, dtype=torch.float64).to(device)
    bias = torch.randn(10, generator=generator, dtype=torch.float64).to(device)
    flat = weight.flatten(1)
    found = patches(pixels, (16, 16), torch.bfloat16).double() @ flat.t() + bias + 128 * flat.sum(1)
    wanted = F.conv2d(pixels.double(), weight, bias, stride=16).flatten(2).transpose(1, 2).reshape(-1, 10)
    torch.testing.assert_close(found, wanted)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    pixels = pixels_of((1, 3, 32, 40), device)
    with pytest.raises(ValueError, match="do not tile"):
        patches(pixels, (16, 16), torch.bfloat16)
    with pytest.raises(ValueError, match="not exact"):
        patches(pixels, (16, 8), torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="uint8"):
        patches(pixels.float(), (16, 8), torch.bfloat16)
    with pytest.raises(ValueError, match="contiguous"):
        patches(pixels.transpose(2, 3), (8, 8), torch.bfloat16)
