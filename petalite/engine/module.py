"""timm's module with each layer as its format builds it: the reference that engines are held against.

runner = PlainModule(model, preprocess, torch.bfloat16, torch.device("cpu"))
runner.forward(pixels)                              # logits, in the module's precision
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from petalite.data.preprocess import Preprocess


class PlainModule:
    """A model in one precision on one device; pixels that are not normalized yet are normalized there."""

    def __init__(self, model: nn.Module, preprocess: Preprocess, dtype: torch.dtype, device: torch.device) -> None:
        self.model, self.preprocess, self.dtype, self.device = model, preprocess, dtype, device

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, classes) of pixels (N, 3, H, W), uint8 or floating point and normalized, not synchronized."""
        pixels = pixels.to(self.device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = self.preprocess.normalize(pixels)
        logits: Tensor = self.model(pixels.to(self.dtype))
        return logits

    def report(self) -> dict[str, Any]:
        """Nothing is chosen here."""
        return {}
