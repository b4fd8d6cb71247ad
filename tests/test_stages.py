"""The stages of a ViT together are its forward pass, bit for bit, wherever it is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from petalite import stages

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2, "num_classes": 5}


def vit(name: str = "vit_tiny_patch16_224", **arguments: Any) -> nn.Module:
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, **SIZE, **arguments)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return model.eval()


KINDS = {
    "vit": {},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "norm before": {"pre_norm": True},
    "average pooling": {"global_pool": "avg", "class_token": False, "fc_norm": True},
    "layer scale": {"init_values": 0.1, "qk_norm": True},
    "distilled": {"name": "deit_tiny_distilled_patch16_224"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_stages_are_the_forward_pass(kind: str, dtype: torch.dtype) -> None:
    model = vit(**KINDS[kind]).to(dtype)
    pixels = torch.randn(2, 3, 32, 32).to(dtype)
    expected = model(pixels)
    assert stages.depth(model) == 3
    for cut in range(4):
        tokens = stages.run_blocks(model, stages.embed(model, pixels), 0, cut)
        logits = stages.finish(model, stages.run_blocks(model, tokens, cut))
        assert torch.equal(logits, expected), cut


@torch.inference_mode()
def test_block_may_return_fewer_tokens() -> None:
    class Dropping(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.block(tokens)[:, :-4]
            return out

    model: Any = vit()
    model.blocks[1] = Dropping(model.blocks[1])
    pixels = torch.randn(2, 3, 32, 32)
    tokens = stages.run_blocks(model, stages.embed(model, pixels), 0, 2)
    assert tokens.shape == (2, 13, 64)  # 16 patches and the class token, less four
    assert torch.equal(stages.finish(model, stages.run_blocks(model, tokens, 2)), model(pixels))


def test_tokens_passed_in_are_not_changed() -> None:
    model = vit()
    with torch.inference_mode():
        tokens = stages.embed(model, torch.randn(2, 3, 32, 32))
        before = tokens.clone()
        stages.finish(model, stages.run_blocks(model, tokens))
    assert torch.equal(tokens, before)
