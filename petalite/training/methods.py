"""What is trained: the head, LoRA matrices, LoRA over NF4, or everything; and how it becomes plain weights again.

Sources: Hu et al., "LoRA", 2021 (arXiv:2106.09685); Dettmers et al., "QLoRA", 2023 (arXiv:2305.14314). The matrices are
peft's. The head is always trained, in float32, beside them; it is saved by its own name and cannot be lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from petalite import models
from petalite.checkpoint import Checkpoint
from petalite.errors import PetaliteError
from petalite.formats import get_format
from petalite.formats.bitsandbytes_import import quiet_bitsandbytes
from petalite.plan import Plan, is_head
from petalite.recipe import TrainRecipe

LEARNING_RATES = {"lora": 2e-3, "qlora": 2e-3, "head": 5e-3, "full": 1e-4, "qat": 5e-4}


class PlainStudent:
    """A plain model that learns by `recipe.method`, and becomes plain float32 weights."""

    start_counts = False

    def __init__(self, start: Checkpoint, recipe: TrainRecipe, device: torch.device) -> None:
        self.start, self.recipe = start, recipe
        self.model = prepare(start.config, start.tensors, recipe, device)

    def groups(self) -> list[dict[str, Any]]:
        """Matrices decay, other tensors do not."""
        trained = trainable(self.model).values()
        matrices = [parameter for parameter in trained if parameter.ndim >= 2]
        others = [parameter for parameter in trained if parameter.ndim < 2]
        return [
            {"params": matrices, "rate": 1.0, "weight_decay": self.recipe.weight_decay},
            {"params": others, "rate": 1.0, "weight_decay": 0.0},
        ]

    def settle(self) -> None:
        """Nothing: every value is allowed."""

    def evaluate(self) -> None:
        """Ready for validation."""
        self.model.eval()
        keep_4bit_layers_unpacked(self.model)

    def finished(self, best: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Plan]:
        """The merged tensors."""
        return merged(self.model, best), self.start.plan


def prepare(
    config: models.Config, tensors: Mapping[str, Tensor], recipe: TrainRecipe, device: torch.device
) -> nn.Module:
    """The model on `device`, with the parameters that `recipe.method` trains requiring gradients, in float32."""
    model: Any = models.build(config)
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    model.to(device).requires_grad_(recipe.method == "full")
    if recipe.method == "qlora":
        _quantize_blocks(model, device)
    if recipe.method in ("lora", "qlora"):
        _add_lora(model, recipe)
    for name, parameter in model.named_parameters():
        if is_head(name.rpartition(".")[0]):
            parameter.requires_grad_(True)
    if recipe.checkpointing:
        model.set_grad_checkpointing(True)
    prepared: nn.Module = model
    return prepared


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def merged(model: nn.Module, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain float32 tensors under timm's names, from the model and the `trained` values of its trainable parameters."""
    parameters = dict(model.named_parameters())
    for name, value in trained.items():
        parameters[name].copy_(value)
    plain: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        if ".lora_" in name or (".base_layer." in name and not name.endswith(".base_layer.bias")):
            continue
        plain[name.replace(".base_layer.", ".")] = parameter.float().cpu().clone()
    for name, module in _modules(model):
        if hasattr(module, "lora_A"):
            delta: Tensor = module.get_delta_weight("default")
            plain[f"{name}.weight"] = (_base_weight(module) + delta.float()).cpu()
    return plain


def keep_4bit_layers_unpacked(model: nn.Module) -> None:
    """Call after `model.eval()`: bitsandbytes' 4-bit layers repack their weights for inference on some processors at
    the first forward pass in evaluation mode, and cannot be trained afterwards."""
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True


def _modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from model.named_modules()


def _add_lora(model: nn.Module, recipe: TrainRecipe) -> None:
    quiet_bitsandbytes()
    from peft import LoraConfig, inject_adapter_in_model

    # a full expression: "proj" alone would also take the patch embedding, which is a convolution of that name
    targets = rf"blocks\.\d+\.(attn|mlp)\.({'|'.join(recipe.targets)})"
    adapter = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, target_modules=targets, bias="none"
    )
    inject_adapter_in_model(adapter, model)
    for parameter in trainable(model).values():
        parameter.data = parameter.data.float()


def _quantize_blocks(model: Any, device: torch.device) -> None:
    format = get_format("nf4")
    format.require(device)
    for name in models.layers(model):
        if is_head(name) or name == "patch_embed.proj":
            continue
        linear = model.get_submodule(name)
        packed = format.pack(linear.weight.detach().float())
        bias = linear.bias.detach() if linear.bias is not None else None
        model.set_submodule(name, format.build(packed, bias, torch.bfloat16, device))
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True  # peft asks this before it wraps bitsandbytes' layers


def _base_weight(module: Any) -> Tensor:
    weight: Any = module.base_layer.weight
    if hasattr(weight, "quant_state"):
        import bitsandbytes

        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            raise PetaliteError(
                "a 4-bit layer was repacked for inference during training; its weights cannot be merged"
            )
        unpacked: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return unpacked.float()
    plain: Tensor = weight.float()
    return plain
