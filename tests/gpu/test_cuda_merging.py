"""Token merging on a CUDA device: every backend, the same bits each time, and inside a CUDA graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petalite.attention import BACKENDS
from petalite.engine import load
from tests.test_merging import merging, proportional
from tests.tiny import tiny_checkpoint, tiny_pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("D", [32, 64, 80])
def test_every_backend_attends_to_a_token_as_to_what_it_stands_for(name: str, dtype: torch.dtype, D: int) -> None:
    backend = BACKENDS[name]
    if reason := backend.unavailable(torch.device("cuda", 0), dtype):
        pytest.skip(reason)
    query, key, value, size, expected = (tensor.cuda() for tensor in proportional(dtype, D))
    found = backend.attend(query, key, value, size.log()[:, None, None]).double()
    # fa2 carries the bias in two channels; the others round log 150 to 8 bits (bfloat16) or 11
    bound = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype] / (4 if name == "fa2" else 1)
    assert (found - expected).norm() / expected.norm() < bound


@pytest.mark.parametrize("attention", ["math", "sdpa", "fa2", "efficient", "cudnn"])
def test_a_model_merges_as_on_the_cpu_and_the_same_each_time(tmp_path: Path, attention: str) -> None:
    checkpoint = merging(tiny_checkpoint(tmp_path / "tiny", global_pool="avg"), (5, 4))
    expected = load(checkpoint, "cpu").logits(tiny_pixels(32))
    classifier = load(checkpoint, "cuda", attention, "fp16")
    logits = classifier.logits(tiny_pixels(32))
    assert (logits - expected).norm() / expected.norm() < 0.05
    assert all(torch.equal(classifier.logits(tiny_pixels(32)), logits) for _ in range(5))


@pytest.mark.parametrize("attention", ["sdpa", "fa2"])
def test_a_cuda_graph_replays_it(tmp_path: Path, attention: str) -> None:
    classifier = load(merging(tiny_checkpoint(tmp_path / "tiny"), (5, 4)), "cuda", attention, "fp16")
    first, second = (classifier.preprocess.normalize(tiny_pixels(8, seed).cuda()) for seed in (0, 1))
    pixels = first.clone()
    with torch.inference_mode():
        expected = [classifier.forward(some).clone() for some in (first, second)]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = classifier.forward(pixels)
        for some, wanted in zip((first, second), expected, strict=True):
            pixels.copy_(some)
            graph.replay()
            assert torch.equal(logits, wanted)
