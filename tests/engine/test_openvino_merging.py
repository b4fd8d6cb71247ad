"""Merging in a graph: the same tokens merge, into the same values, as in PyTorch."""

from __future__ import annotations

import pytest
import torch

from petalite.engine.openvino_merging import merge
from petalite.engine.openvino_runtime import core, op, ov
from petalite.merging import merge_tokens


@pytest.mark.parametrize(
    ("batch", "tokens", "protected", "count"),
    [(1, 17, 1, 3), (2, 17, 1, 8), (3, 12, 0, 1), (1, 11, 2, 4), (2, 3, 1, 1), (1, 197, 1, 98)],
)
def test_the_same_tokens_merge(batch: int, tokens: int, protected: int, count: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(batch, tokens, 24, generator=generator)
    sizes = torch.randint(1, 6, (batch, tokens), generator=generator).float()
    key = torch.randn(batch, 2, tokens, 16, generator=generator)
    key[:, :, -1] = 0  # like nothing
    inputs = [op.parameter(list(value.shape), ov.Type.f32) for value in (x, sizes, key)]
    merged = merge(*inputs, count, protected, (batch, tokens, 24))
    model = ov.Model([part.output(0) for part in merged], inputs, "merge")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core().compile_model(model, "CPU", settings)
    found = compiled([value.numpy() for value in (x, sizes, key)])
    expected, expected_sizes = merge_tokens(x, sizes, key, count, protected)
    torch.testing.assert_close(torch.from_numpy(found[1]), expected_sizes)
    torch.testing.assert_close(torch.from_numpy(found[0]), expected, rtol=1e-5, atol=1e-5)
