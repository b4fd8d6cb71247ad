"""Every attention backend against the formula in float64, and every reason why one cannot run."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from petalite.attention import BACKENDS, resolve_attention
from petalite.engine import load
from petalite.errors import PetaliteError
from tests.tiny import tiny_checkpoint, tiny_pixels

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    query, key, value = query.double(), key.double(), value.double()
    return torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1) @ value


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 32), (2, 3, 197, 64), (3, 2, 50, 80)])
def test_a_backend_computes_attention(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if reason := BACKENDS[name].unavailable(CPU, dtype):
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    out = BACKENDS[name].attend(query, key, value)
    assert out.shape == query.shape
    error = (out.double() - exact(query, key, value)).norm() / exact(query, key, value).norm()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("name", ["math", "sdpa", "fa2"])
def test_a_model_attends_with_any_backend(tmp_path: Path, name: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny", qk_norm=True)
    expected = load(checkpoint, "cpu").logits(tiny_pixels())
    classifier = load(checkpoint, "cpu", attention=name)
    assert classifier.info.attention == name
    torch.testing.assert_close(classifier.logits(tiny_pixels()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["efficient", "cudnn"])
def test_what_needs_a_gpu_says_so(name: str) -> None:
    with pytest.raises(PetaliteError, match=f"{name} runs on CUDA only, not on cpu; use sdpa or fa2"):
        resolve_attention(name, CPU, torch.float32)


def test_old_gpus_and_full_precision_are_refused_by_fa2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(PetaliteError, match=r"fa2 needs compute capability 8\.0 or more, this GPU has 7\.5"):
        resolve_attention("fa2", CUDA, torch.float16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(PetaliteError, match="fa2 computes in fp16 or bf16 on CUDA, not in float32"):
        resolve_attention("fa2", CUDA, torch.float32)
    assert resolve_attention("fa2", CUDA, torch.bfloat16).name == "fa2"


def test_an_unknown_backend_is_named_with_the_nearest() -> None:
    with pytest.raises(PetaliteError, match=r"unknown attention 'fa3' \(did you mean 'fa2'\?\)"):
        resolve_attention("fa3", CPU, torch.float32)


def test_a_backend_that_fails_its_trial_is_an_error_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel for this head size\nlong trace")

    monkeypatch.setitem(BACKENDS, "sdpa", BACKENDS["sdpa"].__class__("sdpa", "", broken, lambda device, dtype: None))
    with pytest.raises(PetaliteError, match=r"sdpa cannot run here with heads of 32: no kernel for this head size$"):
        load(tiny_checkpoint(tmp_path / "tiny"), "cpu", attention="sdpa")


def test_the_flash_attn_package_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors are (B, N, heads, head_dim), so both transposes are checked by the result."""
    package = types.ModuleType("flash_attn")
    package.flash_attn_func = lambda q, k, v: exact(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(
        1, 2
    )  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr("petalite.attention.fa2._flash_attn_installed", lambda: True)
    query, key, value = torch.randn(3, 2, 3, 17, 8, device="meta").unbind(0)
    assert BACKENDS["fa2"].attend(query, key, value).shape == query.shape
