"""What it means that values were written well: as codes with their scale, or plain."""

from __future__ import annotations

import torch
from torch import Tensor

FP8, INT8 = torch.float8_e4m3fn, torch.int8
LARGEST = {FP8: 448.0, INT8: 127.0}
#: Half a unit in the last place, relative, and half the smallest step.
_HALF_ULP = {torch.bfloat16: (2.0**-8, 0.0), torch.float16: (2.0**-11, 2.0**-25), torch.float32: (2.0**-24, 0.0)}


def assert_written(values: Tensor, scale: Tensor | None, exact: Tensor, error: float = 0.0) -> None:
    """`values` (rows, C), as written, stand for `exact`, float64, which a kernel knows up to `error`.

    Codes have to be those nearest to exact / scale, saturated; plain values the nearest ones.
    """
    assert values.shape == exact.shape and values.is_contiguous()
    if values.dtype not in LARGEST:
        assert scale is None
        relative, absolute = _HALF_ULP[values.dtype]
        allowed = exact.abs() * relative * (1 + 2.0**-6) + absolute + error
        assert ((values.double() - exact).abs() <= allowed).all()
        return
    assert scale is not None and scale.dtype == torch.float32
    steps = scale.double().view(-1, 1)
    codes, wanted = values.double(), (exact / steps).clamp(-LARGEST[values.dtype], LARGEST[values.dtype])
    half = half_step(wanted, values.dtype)
    assert not codes.isnan().any() and codes.abs().max() <= LARGEST[values.dtype]
    assert ((codes - wanted).abs() <= half + 1e-6 * wanted.abs() + error / steps).all()


def assert_own_scales(scale: Tensor | None, exact: Tensor, dtype: torch.dtype, error: float = 0.0) -> None:
    """`scale` (rows,) makes each row's largest value the largest code; a row of zeros has 1."""
    largest = exact.abs().amax(dim=1)
    wanted = torch.where(largest > 0, largest / LARGEST[dtype], 1.0)
    assert scale is not None and scale.shape == wanted.shape and scale.dtype == torch.float32
    assert ((scale.double() - wanted).abs() <= 1e-6 * wanted + error / LARGEST[dtype]).all()


def half_step(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance between neighbouring codes around `values`, float64."""
    if dtype == INT8:
        return torch.full_like(values, 0.5)
    return 2.0 ** (values.abs().clamp(min=2.0**-6).log2().floor() - 4)


def rows_of(rows: int, columns: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Normally distributed float32 (rows, columns), each row of another size, one column an outlier."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * spread
    x *= torch.logspace(-1, 1, rows)[:, None]
    x[:, columns // 2] *= 50
    return x
