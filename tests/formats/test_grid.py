"""Grids: what is stored is what is decoded, for random shapes and for values at the ends of what numbers can be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from petalite.formats import FORMATS
from petalite.formats.grid import Float8Grid, Grid, UniformGrid

ON_GRID = [name for name, format in FORMATS.items() if format.grid is not None]


def grid_of(name: str) -> Grid:
    grid = FORMATS[name].grid
    assert grid is not None
    return grid


def weights(rows: int, columns: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ON_GRID)
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 200),
    scale=st.sampled_from([1e-9, 1e-3, 1.0, 1e4, 1e9]),
    seed=st.integers(0, 100),
)
def test_what_is_packed_is_what_was_rounded(name: str, rows: int, columns: int, scale: float, seed: int) -> None:
    grid, weight = grid_of(name), weights(rows, columns, seed, scale)
    scales = grid.stored(grid.fit(weight))
    codes = grid.encode(weight, scales)
    packed = grid.pack(codes, scales)
    restored = grid.unpack(packed)
    assert restored.shape == weight.shape
    torch.testing.assert_close(restored, grid.decode(codes, scales), rtol=1e-4, atol=1e-6 * scale)
    # no value errs by more than its group spans; most by far less, which the format's own bound says
    assert (restored - weight).abs().max() <= 1.1 * (weight.max() - weight.min()) + weight.abs().max() * 0.05


@pytest.mark.parametrize("name", ON_GRID)
def test_scales_survive_their_8_bits(name: str) -> None:
    grid = grid_of(name)
    weight = weights(300, 192) * torch.logspace(-3, 1, 300)[:, None]  # rows that differ ten-thousandfold
    exact, stored = grid.fit(weight), grid.stored(grid.fit(weight))
    assert ((stored.scale - exact.scale) / exact.scale).abs().max() < 0.03
    again = grid.stored(stored)
    torch.testing.assert_close(again.scale, stored.scale, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ON_GRID)
def test_a_row_of_zeros_beside_others_stays_zero(name: str) -> None:
    weight = weights(8, 192)
    weight[3] = 0
    format = FORMATS[name]
    restored = format.unpack(format.pack(weight))
    assert (restored[3] == 0).all()
    assert ((restored - weight).norm() / weight.norm()).item() <= format.error * 1.1


@pytest.mark.parametrize("name", ON_GRID)
def test_an_outlier_costs_its_own_group_alone(name: str) -> None:
    grid, format = grid_of(name), FORMATS[name]
    weight = weights(16, 256)
    weight[5, 7] = 1000.0
    restored = format.unpack(format.pack(weight))
    others = torch.ones(16, dtype=torch.bool)
    others[5] = False
    assert ((restored - weight)[others].norm() / weight[others].norm()).item() <= format.error * 1.1
    assert abs(restored[5, 7].item() - 1000.0) <= 40.0
    if grid.group is not None and grid.group < 256:
        far = restored[5, grid.group :] - weight[5, grid.group :]
        assert (
            far.norm() / weight[5, grid.group :].norm()
        ).item() <= format.error * 1.4  # its second-level scale spans more


@pytest.mark.parametrize(("columns", "group"), [(192, 128), (100, 64), (31, 32), (65, 64)])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_group_size_that_does_not_divide_leaves_a_shorter_last_group(columns: int, group: int, bits: int) -> None:
    grid = UniformGrid(bits, group)
    weight = weights(6, columns)
    scales = grid.stored(grid.fit(weight))
    assert scales.scale.shape == (6, -(-columns // group))
    restored = grid.unpack(grid.pack(grid.encode(weight, scales), scales))
    step = grid.spread(scales.scale, columns)
    assert ((restored - weight).abs() <= 0.75 * step + 1e-6).all()


def test_every_code_of_a_uniform_grid_is_used() -> None:
    grid = UniformGrid(3, 64)
    weight = torch.linspace(-1, 1, 64)[None]
    codes = grid.encode(weight, grid.stored(grid.fit(weight)))
    assert codes.unique().tolist() == list(range(8))


def test_float8_holds_its_largest_value_and_no_nan() -> None:
    grid = Float8Grid()
    weight = torch.tensor([[448.0, -448.0, 1e-3, 0.0], [1e30, -1e30, 1.0, 0.0]])
    scales = grid.stored(grid.fit(weight))
    restored = grid.decode(grid.encode(weight, scales), scales)
    assert torch.isfinite(restored).all()
    torch.testing.assert_close(restored[:, :2], weight[:, :2], rtol=0.07, atol=0)


def test_bytes_are_the_stated_bits_for_the_reference_s_shapes() -> None:
    """ViT-L's widths: codes, 8-bit scales and zero points, nothing else that grows."""
    weight = weights(1024, 4096)
    packed = FORMATS["int4"].pack(weight)
    assert packed["weight"].numel() == 1024 * 4096 // 2
    assert packed["scale"].numel() == packed["zero"].numel() == 1024 * 64
    assert packed["second"].numel() == 2 * 1024 * 64 // 256
    assert set(packed) == {"weight", "scale", "zero", "second"}
