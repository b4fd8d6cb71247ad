"""Models that the engine tests share, and what they answer in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petalite import models
from petalite.attention import use_attention
from petalite.checkpoint import Checkpoint, write_checkpoint
from petalite.data import Preprocess
from petalite.merging import use_merging
from petalite.plan import Plan
from tests.tiny import ARGUMENTS, CLASSES

#: By name: arguments of the model beyond tests.tiny's, and what the plan merges.
MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "class token": ({}, ()),
    "registers, normed heads, layer scale": ({"reg_tokens": 3, "qk_norm": True, "init_values": 0.5}, ()),
    "pre-norm, tanh": ({"pre_norm": True, "act_layer": "gelu_tanh"}, ()),
    "class token, normed behind": ({"fc_norm": True}, ()),
    "mean": ({"global_pool": "avg"}, ()),
    "mean of patches alone": ({"global_pool": "avg", "class_token": False, "fc_norm": False}, ()),
    "no biases, positions of patches alone": ({"qkv_bias": False, "proj_bias": False, "no_embed_class": True}, ()),
    "wide and oblong": ({"img_size": [40, 24], "num_heads": 4, "mlp_ratio": 3, "depth": 3}, ()),
    "merging": ({"depth": 3}, (3, 0, 4)),
    "merging, mean, registers": ({"depth": 3, "global_pool": "avg", "reg_tokens": 2, "qk_norm": True}, (0, 5, 2)),
}


def checkpoint_of(name: str, folder: Path) -> Checkpoint:
    """A tiny checkpoint with random weights of one of MODELS, or of a distilled DeiT."""
    if name == "distilled":
        return random_checkpoint(folder, "deit_tiny_distilled_patch16_224")
    arguments, merge = MODELS[name]
    checkpoint = random_checkpoint(folder, **arguments)
    return replace(checkpoint, plan=replace(checkpoint.plan, merge=merge))


def random_checkpoint(folder: Path, architecture: str = "vit_tiny_patch16_224", **arguments: Any) -> Checkpoint:
    """A plain fp32 checkpoint as `tiny_checkpoint` makes it, for images of any size."""
    given = {"img_size": 32, **ARGUMENTS, **arguments}
    config, tensors = models.create(architecture, pretrained=False, classes=CLASSES, model_args=given)
    generator = torch.Generator().manual_seed(1)
    tensors = {name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in tensors.items()}
    plan = Plan("fp32", dict.fromkeys(models.layers(models.build(config)), "fp32"), "fp32")
    return write_checkpoint(folder, config, tensors, plan)


def pixels_for(checkpoint: Checkpoint, count: int, seed: int = 0) -> Tensor:
    """uint8 pixels (count, 3, H, W)."""
    size = (count, 3, *Preprocess.from_config(checkpoint.config).size)
    return torch.randint(0, 256, size, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@torch.no_grad()
def exact_logits(checkpoint: Checkpoint, pixels: Tensor) -> Tensor:
    """What timm's model answers in float64, its packed weights expanded, its tokens merged as the plan says."""
    model: Any = checkpoint.skeleton()
    model.load_state_dict(checkpoint.plain_tensors(), assign=True)
    model = model.double().eval()
    use_attention(model, "math", torch.device("cpu"), torch.float64)
    use_merging(model, checkpoint.plan.merge)
    preprocess = Preprocess.from_config(checkpoint.config)
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    logits: Tensor = model((pixels.double() / 255 - mean) / std)
    return logits
