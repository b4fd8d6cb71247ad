"""The patches of images as rows of a matrix, so that the patch embedding is a product on pixels.

    rows = patches(pixels, (16, 16), torch.bfloat16)       # uint8 (B, 3, 224, 224) -> (B * 196, 768)

A value is pixel − 128: exact in bfloat16, float16 and int8, which the pixel itself is not in the first and the last.
Mean, standard deviation and the 128 belong into the embedding's weight and bias, so no pass normalizes the pixels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from petalite.engine.kernels import dependent, options, power_of_two
from petalite.engine.kernels.launching import launched

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.int8)
_FEW_RUNS = 1 << 17


def patches(pixels: Tensor, patch: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """uint8 (B, 3, H, W) -> `dtype` (B * gh * gw, 3 * ph * pw): rows of pixel − 128, a patch each, from left to right.

    patch: (ph, pw). A row's values stand as in a convolution's flattened weight: channel, y, x.
    Raises ValueError for images that patches do not tile, and for a `dtype` that is not exact.
    """
    if pixels.ndim != 4 or pixels.dtype != torch.uint8 or not pixels.is_contiguous():
        raise ValueError(f"expected contiguous uint8 pixels (B, 3, H, W), got {pixels.dtype} of {tuple(pixels.shape)}")
    if dtype not in _DTYPES:
        raise ValueError(f"pixels are not exact in {dtype}; one of {', '.join(map(str, _DTYPES))}")
    B, channels, H, W = pixels.shape
    ph, pw = patch
    if H % ph or W % pw:
        raise ValueError(f"patches of {ph} x {pw} do not tile images of {H} x {W}")
    gh, gw = H // ph, W // pw
    out = torch.empty(B * gh * gw, channels * ph * pw, dtype=dtype, device=pixels.device)
    runs = out.numel() // pw
    width = power_of_two(pw)
    tile = max(1, (1_024 if runs < _FEW_RUNS else 4_096) // width)
    with torch.cuda.device_of(pixels):
        launched(_patches, (triton.cdiv(runs, tile),))(
            pixels, out, runs, channels, H, W, ph, pw, tile, width, dependent(pixels.device),
            **options(4, pixels.device),
        )  # fmt: skip
    return out


@triton.jit
def _patches(
    pixels: tl.tensor,
    out: tl.tensor,
    runs: tl.tensor,
    CHANNELS: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    RUNS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    # A run is what stands side by side in both: one patch's pixels of one channel and line. Runs are numbered as written.
    run = tl.program_id(0) * RUNS + tl.arange(0, RUNS)
    y = run % PH
    channel = run // PH % CHANNELS
    patch = run // (PH * CHANNELS)
    across = patch % (W // PW)
    down = patch // (W // PW)  # of all images, below each other
    image = down // (H // PH)
    line = (image * CHANNELS + channel) * H + (down % (H // PH)) * PH + y
    source = line.to(tl.int64) * W + across * PW

    x = tl.max_contiguous(tl.arange(0, WIDTH), 8)
    inside = (run < runs)[:, None] & (x < PW)[None, :]
    value = tl.load(pixels + source[:, None] + x[None, :], mask=inside, other=0).to(tl.float32) - 128
    target = run.to(tl.int64) * PW
    tl.store(out + target[:, None] + x[None, :], value.to(out.dtype.element_ty), mask=inside)
