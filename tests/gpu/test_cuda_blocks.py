"""All blocks in one kernel on a CUDA device: the same checks, a real model's shape, graphs, several at the same time."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
if torch.cuda.get_device_capability() < (9, 0):
    pytest.skip("needs compute capability 9.0", allow_module_level=True)

from petalite.engine.kernels import tiled
from petalite.engine.kernels.blocks import Cut, Table, blocks, cuts, takes
from tests.engine.kernels import test_blocks
from tests.engine.kernels.conftest import device
from tests.engine.kernels.test_blocks import (  # noqa: F401
    EPS,
    error,
    layers_of,
    stream,
    test_a_stream_that_does_not_fit_is_an_error,
    test_an_image_that_is_no_number_spoils_no_other,
    test_extreme_streams_stay_numbers,
    test_images_do_not_see_each_other,
    test_it_changes_the_stream_in_place_to_the_same_bits_each_time,
    test_layers_follow_each_other,
    test_one_layer_is_what_its_parts_are,
    test_what_it_does_not_take_is_said,
    test_without_biases,
)

__all__ = ["device"]


@pytest.mark.parametrize("cut", cuts(), ids=str)
def test_the_shape_of_a_large_model(cut: Cut, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_blocks, "HEADS", 16)
    layers = layers_of(1024, 4096, 2, device)
    table = Table(layers, 16, EPS)
    x = stream(1, 197, 1024, device)
    if not takes(1, 197, table, cut, device):
        pytest.skip("needs 128 multiprocessors")
    found = blocks(x.clone(), table, cut)
    assert error(found, test_blocks.exact(x, layers)) < 2 * test_blocks.near(device)
    assert torch.equal(found, blocks(x.clone(), table, cut))
    assert not tiled.counters(device).counters.any()


def test_graphs_on_two_streams_do_not_wait_for_each_other(device: torch.device) -> None:
    """More programs than fit at the same time: each launch starts when all of its own do."""
    table = Table(layers_of(256, 1024, 4, device), 4, EPS)
    x = stream(1, 197, 256, device)
    wanted = blocks(x.clone(), table)
    made = []
    for _ in range(2):
        place, graph, on = x.clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        with torch.cuda.graph(graph, stream=on):
            result = blocks(place.copy_(x), table)
        made.append((graph, on, result))
    for _ in range(50):
        for graph, on, _ in made:
            with torch.cuda.stream(on):
                graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(result, wanted) for _, _, result in made)
    assert not tiled.counters(device).counters.any()
