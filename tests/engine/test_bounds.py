"""No image, however strange, gives a product a larger input than its bound; and the bounds are no larger than needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from petalite.attention import use_attention
from petalite.data import Preprocess
from petalite.engine.bounds import bounds
from petalite.engine.weights import Block, Linear, Norm, read_network
from petalite.merging import use_merging
from tests.engine.networks import MODELS, checkpoint_of


def strange_images(checkpoint: Any) -> Tensor:
    """Normalized pixels: noise, constants, one bright point, values far beyond any photo's."""
    size = Preprocess.from_config(checkpoint.config).size
    images = torch.randn(6, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images[1] = 1.0
    images[2] = 0.0
    images[2, 0, 3, 5] = 1e4
    images[3] *= 1e6
    images[4] = images[4].sign() * 3
    return images


@pytest.mark.parametrize("name", MODELS)
def test_no_input_exceeds_its_bound(tmp_path: Path, name: str) -> None:
    checkpoint = checkpoint_of(name, tmp_path)
    found = [bounds(block) for block in read_network(checkpoint).blocks]
    model: Any = checkpoint.skeleton()
    model.load_state_dict(checkpoint.plain_tensors(), assign=True)
    model = model.double().eval()
    use_attention(model, "math", torch.device("cpu"), torch.float64)
    use_merging(model, checkpoint.plan.merge)
    seen: dict[tuple[int, str], float] = {}

    def watch(place: tuple[int, str]) -> Any:
        def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
            seen[place] = float(inputs[0].abs().max())

        return hook

    for index, block in enumerate(model.blocks):
        parts = {"qkv": block.attn.qkv, "proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
        for part, layer in parts.items():
            layer.register_forward_pre_hook(watch((index, part)))
        block.attn.qkv.register_forward_hook(lambda _, __, out, index=index: watch((index, "heads"))(None, (out,)))
    with torch.no_grad():
        model(strange_images(checkpoint))
    assert len(seen) == 5 * len(found)
    for (index, part), largest in seen.items():
        assert largest <= getattr(found[index], part), f"block {index}, {part}"


def test_a_bound_is_reached_by_the_worst_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    width, hidden = 48, 96

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    norm = Norm(draw(width), draw(width), 1e-12)
    fc1, qkv = Linear("fc1", draw(hidden, width), draw(hidden)), Linear("qkv", draw(3 * width, width), draw(3 * width))
    block = Block(
        norm, qkv, None, None, Linear("proj", draw(width, width), None), norm, fc1, Linear("fc2", fc1.weight.T, None)
    )
    found = bounds(block)

    def worst(rows: Tensor) -> Tensor:
        """LayerNorm of tokens that point along each row, forwards and backwards."""
        tokens = torch.cat((rows, -rows)).double()
        return F.layer_norm(tokens, (width,), norm.weight.double(), norm.bias.double(), norm.eps)

    spikes = worst(torch.eye(width))
    assert spikes.abs().max() == pytest.approx(found.qkv / 1.02) == pytest.approx(found.fc1 / 1.02)
    answers = F.linear(worst(fc1.weight * norm.weight), fc1.weight.double(), fc1.bias.double())  # type: ignore[union-attr]
    assert answers.abs().max() == pytest.approx(found.fc2 / 1.02)
    value = qkv.rows(2 * width, 3 * width)
    answers = F.linear(worst(value.weight * norm.weight), value.weight.double(), value.bias.double())  # type: ignore[union-attr]
    assert answers.abs().max() == pytest.approx(found.proj / 1.02)
