"""Scales that lose least: narrower than the extremes, then fitted to the codes by least squares.

    scales = fit_scales(grid, weight, importance)      # importance: mean square of each input, or None

A range that covers every value spends codes on a few outliers. Each group tries narrower ranges and keeps the one with
the smallest weighted error; given the codes, the best scale and zero point are a weighted linear regression.

Sources: the search over ranges is that of OMSE (Choukroun et al., 2019, arXiv:1902.06822); alternating codes and a
closed-form scale is half-quadratic in spirit (HQQ: Badri and Shaji, 2023) with a squared error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from petalite.formats.grid import Grid, Scales, UniformGrid

_STEPS = 24
_NARROWEST = 0.35
_REFINEMENTS = 4


def fit_scales(grid: Grid, weight: Tensor, importance: Tensor | None = None) -> Scales:
    """Scales of `weight` (rows, columns) with a small Σ importance · (weight − rounded)², as they will stand on disk.

    importance: (columns,), the mean square of each input; None weighs all alike. A grid that is not uniform keeps the
    scales that cover every value.
    """
    widest = grid.fit(weight)
    if not isinstance(grid, UniformGrid):
        return grid.stored(widest)
    shape = weight.shape[1]
    importance = torch.ones(shape, device=weight.device) if importance is None else importance.float()
    best = grid.stored(widest)
    error = _group_errors(grid, weight, importance, best)
    for step in range(1, _STEPS):
        shrink = 1 - (1 - _NARROWEST) * step / (_STEPS - 1)
        best, error = _better(grid, weight, importance, best, error, Scales(widest.scale * shrink, widest.zero))
    for _ in range(_REFINEMENTS):
        best, error = _better(grid, weight, importance, best, error, _regression(grid, weight, importance, best))
    return grid.stored(best)


def _better(
    grid: UniformGrid, weight: Tensor, importance: Tensor, best: Scales, error: Tensor, candidate: Scales
) -> tuple[Scales, Tensor]:
    """Group by group, whichever of `best` and `candidate` errs less."""
    found = _group_errors(grid, weight, importance, candidate)
    wins = found < error
    scales = Scales(torch.where(wins, candidate.scale, best.scale), torch.where(wins, candidate.zero, best.zero))
    return scales, torch.where(wins, found, error)


def _group_errors(grid: UniformGrid, weight: Tensor, importance: Tensor, scales: Scales) -> Tensor:
    rounded = grid.decode(grid.encode(weight, scales), scales)
    return group_sums(importance * (weight - rounded).square(), grid.group)


def _regression(grid: UniformGrid, weight: Tensor, importance: Tensor, scales: Scales) -> Scales:
    """Weighted least squares of the weights on their codes, in each group."""
    codes = grid.encode(weight, scales).float()
    if grid.symmetric:
        codes = codes - grid.middle
        scale = group_sums(importance * codes * weight, grid.group) / group_sums(
            importance * codes.square(), grid.group
        )
        return Scales(torch.where(scale > 0, scale, scales.scale).nan_to_num(nan=0.0, posinf=0.0), scales.zero)
    total = group_sums(importance.expand_as(codes), grid.group).clamp(min=1e-12)
    mean_code = group_sums(importance * codes, grid.group) / total
    mean_weight = group_sums(importance * weight, grid.group) / total
    variance = group_sums(importance * codes.square(), grid.group) / total - mean_code.square()
    covariance = group_sums(importance * codes * weight, grid.group) / total - mean_code * mean_weight
    scale = covariance / variance
    usable = (variance > 1e-8) & (scale > 0) & torch.isfinite(scale)
    scale = torch.where(usable, scale, scales.scale)
    zero = torch.where(usable, mean_code - mean_weight / scale, scales.zero)
    return Scales(scale, zero.clamp(0, grid.highest))


def group_sums(values: Tensor, group: int | None) -> Tensor:
    """(rows, columns) -> the sum of each group, (rows, groups)."""
    if group is None:
        return values.sum(dim=1, keepdim=True)
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % group))
    return padded.reshape(values.shape[0], -1, group).sum(dim=2)
