"""The network that engines multiply with: what is folded changes no answer, and what is not computed is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from petalite.data import Preprocess
from petalite.engine.weights import Linear, Network, Norm, read_network, unsupported
from petalite.errors import PetaliteError
from petalite.merging import merge_tokens
from petalite.outline import Outline
from petalite.quantization import quantize
from tests.engine.networks import MODELS, checkpoint_of, exact_logits, pixels_for
from tests.tiny import tiny_checkpoint, tiny_pixels


def answers(network: Network, pixels: Tensor, *, normalized: bool = False) -> Tensor:
    """Logits of a network as written, in float64; `pixels` less 128, or normalized."""

    def apply(linear: Linear, x: Tensor) -> Tensor:
        return F.linear(x, linear.weight.double(), None if linear.bias is None else linear.bias.double())

    def norm(layer: Norm | None, x: Tensor) -> Tensor:
        if layer is None:
            return x
        return F.layer_norm(x, (x.shape[-1],), layer.weight.double(), layer.bias.double(), layer.eps)

    shape = network.shape
    (rows, columns), (high, wide) = shape.grid, shape.patch
    patches = pixels[:, :, : rows * high, : columns * wide].reshape(-1, 3, rows, high, columns, wide)
    patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(len(pixels), len(network.positions), -1).double()
    x = apply(network.normalized if normalized else network.pixels, patches) + network.positions
    x = norm(network.norm_pre, torch.cat([network.tokens.double().expand(len(x), -1, -1), x], dim=1))
    size = torch.ones(x.shape[:2])
    for block in network.blocks:
        heads = apply(block.qkv, norm(block.norm1, x)).unflatten(2, (3, shape.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = norm(block.q_norm, heads[0]), norm(block.k_norm, heads[1]), heads[2]
        scores = query @ key.mT * shape.head_dim**-0.5 + size.double().log()[:, None, None]
        x = x + apply(block.proj, (scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        if block.merge:
            x, size = merge_tokens(x, size, key, block.merge, shape.prefix)
        hidden = F.gelu(apply(block.fc1, norm(block.norm2, x)), approximate=shape.gelu)
        x = x + apply(block.fc2, hidden)
    x = norm(network.norm, x)
    if shape.read:
        pooled = x[:, : shape.read].flatten(1)
    else:
        weight = size[:, shape.mean_from :, None].double()
        pooled = (x[:, shape.mean_from :] * weight).sum(1) / weight.sum(1)
    return apply(network.head, norm(network.fc_norm, pooled))


@pytest.mark.parametrize("name", [*MODELS, "distilled"])
def test_what_is_folded_changes_no_answer(tmp_path: Path, name: str) -> None:
    checkpoint = checkpoint_of(name, tmp_path / "tiny")
    network = read_network(checkpoint)
    pixels = pixels_for(checkpoint, 3)
    expected = exact_logits(checkpoint, pixels)
    assert network.shape.classes == expected.shape[1]
    torch.testing.assert_close(answers(network, pixels.double() - 128), expected, rtol=1e-5, atol=1e-5)
    normalized = Preprocess.from_config(checkpoint.config).normalize(pixels)
    torch.testing.assert_close(answers(network, normalized, normalized=True), expected, rtol=1e-5, atol=1e-5)


def test_packed_weights_come_expanded_with_the_ranges_of_their_inputs(tmp_path: Path) -> None:
    parent = tiny_checkpoint(tmp_path / "parent", init_values=0.1)
    packed = quantize(parent, "int4", tmp_path / "int4", edges="int8-channel", merge=(2, 0))
    spans = {"blocks.1.mlp.fc2": (-0.2, 3.0)}
    network = read_network(replace(packed, plan=replace(packed.plan, activations=spans)))
    block, other = network.blocks[1], network.blocks[0]
    expected = packed.unpacked("blocks.1.mlp.fc2") * packed.tensors["blocks.1.ls2.gamma"].float()[:, None]
    torch.testing.assert_close(block.fc2.weight, expected)
    assert block.fc2.span == (-0.2, 3.0) and other.fc2.span is None
    assert [linear.name for linear in network.linears()][:2] == ["blocks.0.attn.qkv", "blocks.0.attn.proj"]
    assert [(block.merge, block.sized) for block in network.blocks] == [(2, True), (0, True)]
    assert all(linear.weight.dtype == torch.float32 for linear in network.linears())
    torch.testing.assert_close(answers(network, tiny_pixels().double() - 128), exact_logits(packed, tiny_pixels()))


def test_before_the_first_block_that_merges_nothing_is_sized(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny", depth=4)

    def kinds(merge: tuple[int, ...]) -> list[tuple[int, bool]]:
        network = read_network(replace(checkpoint, plan=replace(checkpoint.plan, merge=merge)))
        return [(block.merge, block.sized) for block in network.blocks]

    assert kinds((0, 3, 0, 99)) == [(0, False), (3, True), (0, True), (6, True)]  # at most half of the 13 that are left
    assert kinds((0, 0, 0, 0)) == kinds(()) == [(0, False)] * 4


def test_the_middle_of_the_pixels_is_exact_in_eight_bits(tmp_path: Path) -> None:
    """A grey image is all zeros: what is left of it is the bias."""
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    network = read_network(checkpoint)
    grey = Preprocess.from_config(checkpoint.config).normalize(torch.full((1, 3, 32, 32), 128, dtype=torch.uint8))
    patch = grey[0, :, :8, :8].reshape(-1).double()
    assert network.normalized.bias is not None and network.pixels.bias is not None
    expected = network.normalized.weight.double() @ patch + network.normalized.bias.double()
    torch.testing.assert_close(network.pixels.bias.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"global_pool": "max"}, "pooling by 'max'"),
        ({"act_layer": "quick_gelu"}, "the activation QuickGELU"),
        ({"act_layer": "silu"}, "the activation SiLU"),
        ({"norm_layer": "rmsnorm"}, "a norm of type RmsNorm"),
    ],
)
def test_what_it_does_not_compute_is_named(tmp_path: Path, arguments: dict[str, Any], says: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny", **arguments)
    assert unsupported(checkpoint) == says
    with pytest.raises(PetaliteError, match=f"the fused engine does not compute {says}; use --engine module$"):
        read_network(checkpoint)


def test_parts_that_no_argument_of_a_checkpoint_asks_for_are_seen_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    model: Any = checkpoint.skeleton()
    monkeypatch.setattr(type(checkpoint), "outline", property(lambda self: Outline.of(model)))
    attn, mlp, embed = model.blocks[1].attn, model.blocks[1].mlp, model.patch_embed
    for owner, name, part, says in [
        (attn, "gate", torch.nn.Linear(64, 64), "gated attention"),
        (attn, "norm", torch.nn.LayerNorm(64), "a norm behind attention"),
        (mlp, "norm", torch.nn.LayerNorm(256), "a norm inside the MLP"),
        (embed, "norm", torch.nn.LayerNorm(64), "a norm in the patch embedding"),
        (embed, "proj", torch.nn.Conv2d(3, 64, 8, 4), "a patch embedding whose patches overlap"),
        (embed, "img_size", (40, 40), "images of another size than the model's"),
        (model, "head", torch.nn.Identity(), "a model without a head"),
    ]:
        kept = getattr(owner, name)
        setattr(owner, name, part)
        assert unsupported(checkpoint) == says
        setattr(owner, name, kept)
    assert unsupported(checkpoint) is None


def test_a_block_goes_to_a_device_as_a_whole(tmp_path: Path) -> None:
    block = read_network(checkpoint_of("merging, mean, registers", tmp_path)).blocks[1]
    moved = block.to(torch.device("meta"))
    parts = (moved.norm1, moved.qkv, moved.q_norm, moved.k_norm, moved.proj, moved.norm2, moved.fc1, moved.fc2)
    tensors = [value for part in parts for value in vars(part).values() if isinstance(value, Tensor)]
    assert len(tensors) == 16 and all(tensor.is_meta for tensor in tensors)
    assert (moved.merge, moved.sized, moved.qkv.name) == (block.merge, block.sized, block.qkv.name)
    assert not block.qkv.weight.is_meta
