"""Kernels compiled together on a GPU: what needs them then launches at once, and none of them ran before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from triton import knobs

from petalite.engine.kernels import norm as module
from petalite.engine.kernels.launching import compile_together
from petalite.engine.kernels.norm import norm
from petalite.engine.kernels.product import product
from petalite.engine.kernels.tiles import configs
from tests.engine.kernels.codes import FP8

DEVICE = torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of kernels as they are compiled, in a cache of its own."""
    names: list[str] = []

    def listener(*, src: object, **_: object) -> None:
        names.append(str(getattr(src, "name", src)))

    with monkeypatch.context() as patched, knobs.compilation.scope(), knobs.cache.scope():
        patched.setattr(knobs.compilation, "listener", listener)
        patched.setattr(knobs.cache, "dir", str(tmp_path))
        yield names


def test_what_was_compiled_is_launched_at_once_and_is_right(compiled: list[str]) -> None:
    x, weight, bias = (
        torch.randn(40, 208, device=DEVICE),
        torch.rand(208, device=DEVICE),
        torch.rand(208, device=DEVICE),
    )
    branch = torch.ones_like(x)
    before = x.clone()

    def run() -> None:
        norm(x, weight, bias, 1e-6, add=branch, dtype=torch.float32)

    module._norm.device_caches.clear()
    compile_together([run, run], DEVICE)
    assert compiled == ["_norm"]
    torch.testing.assert_close(x, before)  # nothing was added: it did not run
    out, _ = norm(x, weight, bias, 1e-6, add=branch, dtype=torch.float32)
    assert compiled == ["_norm"]
    torch.testing.assert_close(x, before + 1)
    expected = torch.nn.functional.layer_norm((before + 1).double(), (208,), weight.double(), bias.double(), 1e-6)
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-5)


def test_every_way_to_cut_a_product_is_compiled_once(compiled: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    a, w = (torch.randn(rows, 256, generator=generator).to(DEVICE).to(FP8) for rows in (48, 160))
    one = torch.ones(1, device=DEVICE)
    ways = configs(64, 160, 256, FP8, torch.cuda.get_device_capability(DEVICE))

    def run(config: object) -> torch.Tensor:
        return product(a, w, a_scale=one, w_scale=None, dtype=torch.bfloat16, config=config)

    compile_together([lambda config=config: run(config) for config in ways], DEVICE)
    count = len(compiled)
    assert count >= 1
    expected = a.double() @ w.double().T
    for config in ways:
        error = (run(config).double() - expected).norm() / expected.norm()
        assert error < 0.01, config
    assert len(compiled) == count
