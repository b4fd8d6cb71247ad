"""Error feedback: what rounding one input's weights loses is made up for by the inputs that are still to be rounded.

    codes, scales = gptq(grid, weight, moments)        # moments: Σ x xᵀ over the calibration inputs, (columns, columns)

Inputs are rounded in the order of their second moment, the strongest first; scales are fixed before, so that the order
costs nothing on disk. Afterwards the scales of each row are fitted once more, to its codes, by least squares on the
outputs.

Source: Frantar et al., "GPTQ", 2022 (arXiv:2210.17323), after optimal brain surgeon (Hassibi and Stork, 1992).
"""

from __future__ import annotations

import torch
from torch import Tensor

from petalite.calibration.clip import fit_scales
from petalite.errors import PetaliteError
from petalite.formats.grid import Grid, Scales, UniformGrid

DAMPING = 0.01
_PANEL = 128
_ROWS = 128  # rows whose scales are fitted at once: bounds the memory
_ROUNDS = 2


def gptq(grid: Grid, weight: Tensor, moments: Tensor) -> tuple[Tensor, Scales]:
    """Codes uint8 and stored scales of `weight` (rows, columns) for inputs with second moments (columns, columns).

    Raises PetaliteError for moments that are not finite.
    """
    if not torch.isfinite(moments).all():
        raise PetaliteError("the calibration images give inputs that are NaN or infinite; the checkpoint is damaged")
    moments = moments.float().clone()
    diagonal = moments.diagonal()
    average = diagonal.mean()
    if average <= 0:  # inputs that are always zero: any weight will do
        scales = fit_scales(grid, weight)
        return grid.encode(weight, scales), scales
    diagonal += DAMPING * average
    scales = fit_scales(grid, weight, diagonal)
    codes = _feedback(grid, weight, moments, scales)
    if isinstance(grid, UniformGrid):
        for _ in range(_ROUNDS):
            refined = grid.stored(_output_regression(grid, weight, moments, codes, scales))
            again = _feedback(grid, weight, moments, refined)
            better = _errors(grid, weight, moments, again, refined) < _errors(grid, weight, moments, codes, scales)
            codes = torch.where(better[:, None], again, codes)
            scales = Scales(*(torch.where(better[:, None], new, old) for new, old in _pairs(refined, scales)))
            # scales are stored in ranges that rows share, so a mixture of rows has to be stored once more
            scales = grid.stored(scales)
    return codes, scales


def _pairs(first: Scales, second: Scales) -> tuple[tuple[Tensor, Tensor], ...]:
    return (first.scale, second.scale), (first.zero, second.zero)


def _feedback(grid: Grid, weight: Tensor, moments: Tensor, scales: Scales) -> Tensor:
    """Round column by column, strongest input first; each error is spread over the columns that are left."""
    order = moments.diagonal().argsort(descending=True)
    rest = weight.float()[:, order].clone()
    factor = _inverse_factor(moments[order][:, order])  # upper triangular
    group = grid.group or weight.shape[1]
    of_column = (order // group).tolist()
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for start in range(0, weight.shape[1], _PANEL):
        stop = min(start + _PANEL, weight.shape[1])
        errors = torch.zeros(weight.shape[0], stop - start, device=weight.device)
        for column in range(start, stop):
            at = of_column[column]
            own = Scales(scales.scale[:, at : at + 1], scales.zero[:, at : at + 1])
            code = grid.encode(rest[:, column : column + 1], own)
            error = (rest[:, column] - grid.decode(code, own)[:, 0]) / factor[column, column]
            rest[:, column + 1 : stop] -= error[:, None] * factor[column, column + 1 : stop]
            errors[:, column - start] = error
            codes[:, column] = code[:, 0]
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes[:, order.argsort()]


def _inverse_factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, in float64: second moments of activations are badly conditioned."""
    lower = torch.linalg.cholesky(moments.double())
    inverse = torch.cholesky_inverse(lower)
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    return factor


def _errors(grid: Grid, weight: Tensor, moments: Tensor, codes: Tensor, scales: Scales) -> Tensor:
    """Each row's squared error on the outputs, (rows,)."""
    lost = weight - grid.decode(codes, scales)
    return ((lost @ moments) * lost).sum(dim=1)


def _output_regression(grid: UniformGrid, weight: Tensor, moments: Tensor, codes: Tensor, scales: Scales) -> Scales:
    """The scales and zero points of each row that minimize its squared error on the outputs, its codes being given."""
    groups = scales.scale.shape[1]
    member = torch.zeros(groups, weight.shape[1], device=weight.device)
    member[torch.arange(weight.shape[1], device=weight.device) // (grid.group or weight.shape[1]),
           torch.arange(weight.shape[1], device=weight.device)] = 1.0  # fmt: skip
    found = []
    for rows in torch.arange(len(weight), device=weight.device).split(_ROWS):
        shifted = codes[rows].float() - (grid.middle if grid.symmetric else 0)
        basis = member * shifted[:, None]  # rows, groups, columns: weight = Σ scale · code + offset
        if not grid.symmetric:
            basis = torch.cat([basis, member.expand(len(rows), -1, -1)], dim=1)
        weighted = basis @ moments
        normal = (weighted @ basis.mT).double()
        right = (weighted @ weight[rows].float()[:, :, None]).double()
        normal.diagonal(dim1=1, dim2=2).add_(1e-6 * normal.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True) + 1e-30)
        found.append(torch.linalg.solve(normal, right)[:, :, 0].float())
    solution = torch.cat(found)
    scale = solution[:, :groups]
    usable = torch.isfinite(scale) & (scale > 0.25 * scales.scale) & (scale < 4 * scales.scale)
    scale = torch.where(usable, scale, scales.scale)
    if grid.symmetric:
        return Scales(scale, scales.zero)
    zero = -solution[:, groups:] / scale
    usable &= torch.isfinite(zero)
    return Scales(
        torch.where(usable, scale, scales.scale), torch.where(usable, zero, scales.zero).clamp(0, grid.highest)
    )
