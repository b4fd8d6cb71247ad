"""The range that a layer's inputs take, for products whose inputs are quantized with a fixed scale.

    span = InputRange()
    for x in batches: span.add(x)
    span.best()          # (low, high) that an 8-bit grid loses least on; a few outliers may lie outside

Vision Transformers have inputs with rare, huge values: covering them costs every other value its precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SAMPLE = 8_192  # values kept of each batch
_RATIOS = 25
_LEVELS = 255


class InputRange:
    """Collects a sample of a layer's inputs and their true extremes."""

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")
        self.samples: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Take note of inputs of any shape."""
        values = x.detach().flatten().float()
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        stride = max(1, len(values) // _SAMPLE)
        self.samples.append(values[::stride].cpu())

    def best(self) -> tuple[float, float]:
        """(low, high) with the smallest squared error of rounding to 256 levels between them, clipping included.

        The extremes themselves weigh in, as they were seen, whatever the sample missed.
        """
        values = torch.cat([*self.samples, torch.tensor([self.low, self.high])])
        best = (min(self.low, 0.0), max(self.high, 0.0))
        smallest = _loss(values, *best)
        for step in range(1, _RATIOS):
            ratio = 1 - step / _RATIOS
            for low, high in (
                (best[0], self.high * ratio),
                (self.low * ratio, best[1]),
                (self.low * ratio, self.high * ratio),
            ):
                low, high = min(low, 0.0), max(high, 0.0)
                loss = _loss(values, low, high)
                if loss < smallest:
                    best, smallest = (low, high), loss
        return best


def _loss(values: Tensor, low: float, high: float) -> float:
    step = (high - low) / _LEVELS
    if step <= 0:
        return float(values.square().sum())
    rounded = ((values - low) / step).round().clamp(0, _LEVELS) * step + low
    return float((values - rounded).square().sum())
