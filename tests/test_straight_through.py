"""A layer on a grid learns, and what it multiplies with is what it packs."""

from __future__ import annotations

import pytest
import torch

from petalite.formats import FORMATS
from petalite.formats.grid import UniformGrid
from petalite.straight_through import RoundedLinear, through

UNIFORM = [name for name, format in FORMATS.items() if isinstance(format.grid, UniformGrid)]


def layer_of(name: str) -> RoundedLinear:
    grid = FORMATS[name].grid
    assert isinstance(grid, UniformGrid)
    weight = torch.randn(24, 100, generator=torch.Generator().manual_seed(0))
    return RoundedLinear.from_packed(grid, FORMATS[name].pack(weight), torch.zeros(24))


def test_gradients_pass_and_values_are_exact() -> None:
    value = torch.tensor([0.1, 0.7], requires_grad=True)
    rounded = through(value, value.round())
    (rounded * torch.tensor([2.0, 3.0])).sum().backward()
    assert rounded.tolist() == [0.0, 1.0]
    assert value.grad is not None and value.grad.tolist() == [2.0, 3.0]


@pytest.mark.parametrize("name", UNIFORM)
def test_it_starts_as_what_was_packed_and_packs_what_it_multiplies_with(name: str) -> None:
    layer = layer_of(name)
    format = FORMATS[name]
    before = layer.packed()
    torch.testing.assert_close(format.unpack(before), layer.weight.detach(), rtol=1e-5, atol=1e-6)
    x = torch.randn(64, 100, generator=torch.Generator().manual_seed(1))
    wanted = x @ torch.randn(100, 24, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = (layer(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(format.unpack(layer.packed()), format.unpack(before))
    torch.testing.assert_close(format.unpack(layer.packed()), layer.weight.detach(), rtol=1e-5, atol=1e-6)
    assert {key: tensor.shape for key, tensor in layer.packed().items()} == {
        key: tensor.shape for key, tensor in before.items()
    }
