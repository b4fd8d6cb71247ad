"""Recovery: a quantized checkpoint is trained on, packed as it is, until the accuracy that packing cost is back.

    petalite train --method qat --model runs/flowers/checkpoints/int3 --data flowers102 --teacher runs/flowers/checkpoints/fp32 …

Each forward pass multiplies with the very weights that would be written then: codes are rounded, scales and plain
tensors cast to what they are stored in, and gradients pass straight through all of that. So the result has the plan of
its start, and what validation saw is what is written. The model starts as exactly the checkpoint that was given.

`qat` trains every weight: codes, scales, zero points, and the plain tensors. `qlora` trains low-rank matrices whose
product is added to the codes before they are rounded, and the head: far fewer values to learn and to remember.
What has no Linear of its own (a packed patch or position embedding) stays as it is. Activations that a format rounds
too (LLM.int8) are not rounded here.

Sources: straight through: Bengio et al., 2013 (arXiv:1308.3432); learned scales: Esser et al., 2020 (arXiv:1902.08153);
low-rank matrices over packed weights: Dettmers et al., "QLoRA", 2023 (arXiv:2305.14314).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from petalite import models
from petalite.attention import use_attention
from petalite.calibration.images import FEWEST, calibration_pixels
from petalite.calibration.ranges import InputRange
from petalite.checkpoint import Checkpoint
from petalite.console import warn
from petalite.data import ImageData, Preprocess
from petalite.errors import PetaliteError
from petalite.formats import get_format
from petalite.formats.plain import DTYPES, cast
from petalite.merging import use_merging
from petalite.plan import POSITIONS, Plan, is_head
from petalite.recipe import TrainRecipe
from petalite.straight_through import RoundedLinear, TrainableLinear, through, trainable_linear

#: How fast plain tensors learn beside packed weights, whose learning rate is a share of the width of their values.
PLAIN_RATE = 0.2
_RANGE_IMAGES = 256


class QuantizedStudent:
    """A quantized checkpoint that learns by `recipe.method`, qat or qlora."""

    start_counts = True

    def __init__(self, start: Checkpoint, recipe: TrainRecipe, device: torch.device) -> None:
        if recipe.dropout:
            raise PetaliteError("recovery adds low-rank matrices to the codes, where dropout has no place; set it to 0")
        self.start, self.recipe = start, recipe
        self.learning: list[tuple[nn.Parameter, float, bool]] = []  # parameter, rate, whether weight decay applies
        self.layers: dict[str, TrainableLinear] = {}
        self.plain: dict[str, tuple[nn.Module, str]] = {}
        model: Any = start.skeleton()
        model.load_state_dict(start.plain_tensors(), assign=True)
        model.to(device).requires_grad_(False)
        if start.plan.merge:
            use_attention(model, "sdpa", device, torch.float32)
        for name in start.packed:
            if name != POSITIONS and isinstance(linear := model.get_submodule(name), nn.Linear):
                self._replace(model, name, linear, device)
        self._learn_plain(model)
        use_merging(model, start.plan.merge)  # last, since it renames
        if recipe.checkpointing:
            model.set_grad_checkpointing(True)
        self.model: nn.Module = model

    def groups(self) -> list[dict[str, Any]]:
        """A group for each learning rate; only plain matrices decay."""
        found: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for parameter, rate, decays in self.learning:
            found.setdefault((rate, decays), []).append(parameter)
        return [
            {"params": parameters, "rate": rate, "weight_decay": self.recipe.weight_decay if decays else 0.0}
            for (rate, decays), parameters in found.items()
        ]

    @torch.no_grad()
    def settle(self) -> None:
        """Keep codes within the grid: beyond its ends they would get no gradient to come back."""
        for layer in self.layers.values():
            if isinstance(layer, RoundedLinear) and not parametrize.is_parametrized(layer, "code"):
                layer.code.clamp_(0, layer.grid.highest)

    def evaluate(self) -> None:
        """Ready for validation."""
        self.model.eval()

    @torch.no_grad()
    def finished(self, best: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Plan]:
        """The checkpoint's tensors, those that were trained packed and cast as the plan says."""
        parameters = dict(self.model.named_parameters())
        for name, value in best.items():
            parameters[name].copy_(value)
        tensors = dict(self.start.tensors)
        for name, layer in self.layers.items():
            tensors |= {f"{name}.{part}": value.cpu() for part, value in layer.packed().items()}
        for name, (module, attribute) in self.plain.items():
            tensors[name] = cast(getattr(module, attribute), self._stored(name)).cpu().clone()
        return tensors, self.start.plan

    def _replace(self, model: nn.Module, name: str, linear: nn.Linear, device: torch.device) -> None:
        """Put a layer that learns in the place of a packed Linear."""
        packed = {part: value.to(device) for part, value in self.start.layer(name).items()}
        layer = trainable_linear(get_format(self.start.plan.layers[name]), packed, linear.bias).to(device)
        layer.requires_grad_(False)
        if self.recipe.method == "qat" or is_head(name):
            self._learn(getattr(layer, layer.latent), layer.width)
            if isinstance(layer, RoundedLinear):
                self._learn(layer.log_scale, 1.0)
                if not layer.grid.symmetric:
                    self._learn(layer.zero, layer.width)
        elif name.rpartition(".")[2] in self.recipe.targets:
            product = LowRank(layer.step(), linear.in_features, self.recipe.rank, self.recipe.alpha)
            parametrize.register_parametrization(layer, layer.latent, product)
            self._learn(product.down, 1.0, decays=True)
            self._learn(product.up, 1.0, decays=True)
        self.layers[name] = layer
        model.set_submodule(name, layer)

    def _learn_plain(self, model: nn.Module) -> None:
        """Let plain tensors learn: all of them by qat, the head's by qlora."""
        packed = {models.weight_name(name) for name in self.start.packed}
        for name in self.start.shapes:
            path, _, attribute = name.rpartition(".")
            if name in packed or not (self.recipe.method == "qat" or is_head(path)):
                continue
            module = model.get_submodule(path)
            parameter: Any = getattr(module, attribute)
            self._learn(parameter, PLAIN_RATE if self.recipe.method == "qat" else 1.0, decays=parameter.ndim == 2)
            self.plain[name] = (module, attribute)
            if (stored := self._stored(name)) != "fp32":
                parametrize.register_parametrization(module, attribute, Cast(DTYPES[stored]))

    def _learn(self, parameter: nn.Parameter, rate: float, decays: bool = False) -> None:
        parameter.requires_grad_(True)
        self.learning.append((parameter, rate, decays))

    def _stored(self, name: str) -> str:
        """The plain format in which a tensor stands in the checkpoint."""
        layer = name.removesuffix(".weight")
        return self.start.plan.layers.get(layer, self.start.plan.rest)


@torch.no_grad()
def input_ranges(
    model: nn.Module, images: ImageData, preprocess: Preprocess, names: Iterable[str], workers: int | None
) -> dict[str, tuple[float, float]]:
    """What the inputs of the layers `names` range over in the trained model; nothing where there are too few images."""
    if len(images.splits["train"]) < FEWEST:
        warn(f"fewer than {FEWEST} training images: the ranges of the layers' inputs were not measured again")
        return {}
    device = next(model.parameters()).device
    spans = {name: InputRange() for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(_note, span)) for name, span in spans.items()
    ]
    for pixels in calibration_pixels(images, preprocess, _RANGE_IMAGES, workers=workers).split(32):
        model.eval()(preprocess.normalize(pixels.to(device)))
    for handle in handles:
        handle.remove()
    return {name: span.best() for name, span in spans.items()}


def _note(span: InputRange, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    span.add(inputs[0])


class LowRank(nn.Module):
    """Adds alpha / rank · up @ down, in units of `step` (what one unit of the sum is worth in the weight)."""

    step: Tensor

    def __init__(self, step: Tensor, columns: int, rank: int, alpha: int) -> None:
        super().__init__()
        self.register_buffer("step", step.clone(), persistent=False)
        down = nn.init.kaiming_uniform_(torch.empty(rank, columns), a=math.sqrt(5))  # as LoRA: the product starts at 0
        self.down = nn.Parameter(down.to(step.device))
        self.up = nn.Parameter(torch.zeros(len(step), rank, device=step.device))
        self.factor = alpha / rank

    def forward(self, value: Tensor) -> Tensor:
        """(out, in) -> (out, in)."""
        with torch.autocast(value.device.type, enabled=False):  # what is packed is computed outside of it
            return value + self.factor * (self.up @ self.down) / self.step


class Cast(nn.Module):
    """A tensor as it will be stored; gradients pass straight through."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, value: Tensor) -> Tensor:
        """float32 of any shape, rounded to `dtype`."""
        return through(value, value.to(self.dtype).float())
