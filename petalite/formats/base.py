"""What a weight format is: a name, what it costs and needs, and three functions.

*pack* turns a Linear's weight into the tensors that stand on disk, *unpack* turns them back into a weight,
*build* makes the module that multiplies with them. A format is one small file in this folder that defines
`FORMAT` (or `FORMATS`, for a family); nothing else has to be edited.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petalite.errors import PetaliteError
from petalite.formats.grid import Grid

#: The tensors of one packed weight, by their name after the layer's: `weight`, `weight.absmax`, `SCB`, …
Packed = dict[str, Tensor]
Pack = Callable[[Tensor], Packed]
Unpack = Callable[[Mapping[str, Tensor]], Tensor]
#: (packed tensors, bias or None, compute dtype, device) -> a module that maps (…, in) to (…, out)
Build = Callable[[Mapping[str, Tensor], Tensor | None, torch.dtype, torch.device], nn.Module]


@dataclass(frozen=True)
class Format:
    """How a Linear's weight is stored.

    bits: stored bits a weight, scales included, for a large layer.
    rest: the plain format of the tensors that belong to no packed weight (norms, embeddings, biases, the head).
    error: bound on the relative error ‖unpack(pack(W)) − W‖ / ‖W‖ for normally distributed weights.
    package: a module that has to be importable, or None.
    devices: device types on which `build`'s module runs.
    transformers: the `quantization_config` with which transformers loads a checkpoint in this format, or None.
    grid: the values that a weight may take, for calibration and training; None where another library packs.
    """

    name: str
    about: str
    bits: float
    pack: Pack
    unpack: Unpack
    build: Build
    rest: str
    error: float
    package: str | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")
    transformers: Mapping[str, Any] | None = None
    grid: Grid | None = None

    @property
    def plain(self) -> bool:
        """Whether the weight is an ordinary floating-point tensor, that any tool can load."""
        return self.rest == self.name

    def missing(self, device: torch.device) -> str | None:
        """Why this format cannot run on `device`, and what to do; None when it can."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.name} needs the package {self.package}: pip install {self.package}"
        if device.type not in self.devices:
            return f"{self.name} does not run on {device.type}; it runs on {' and '.join(self.devices)}"
        return None

    def require(self, device: torch.device) -> None:
        """Raise PetaliteError when this format cannot run on `device`."""
        if reason := self.missing(device):
            raise PetaliteError(reason)


def checked(weight: Tensor) -> Tensor:
    """`weight` if it is a finite matrix in floating point; PetaliteError otherwise (a packed NaN would spread)."""
    if weight.ndim != 2 or not weight.is_floating_point():
        raise PetaliteError(f"only floating-point matrices can be packed, got {weight.dtype} of {tuple(weight.shape)}")
    if not torch.isfinite(weight).all():
        raise PetaliteError("the weight holds NaN or infinity; the checkpoint is damaged or its training diverged")
    return weight
