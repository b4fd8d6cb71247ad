"""On a CUDA device: every format and attention backend runs, agrees with float64 on the CPU, and is what was asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petalite.attention import BACKENDS
from petalite.engine import load
from petalite.engine.choice import choose_compute
from petalite.errors import PetaliteError
from petalite.formats import FORMATS
from petalite.measure.bench import Variant, benchmark
from petalite.quantization import quantize
from petalite.recipe import TrainRecipe
from petalite.training import train
from tests.tiny import tiny_checkpoint, tiny_images, tiny_pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    base = tiny_checkpoint(folder / "fp32")
    for name in FORMATS:
        if name != "fp32":
            quantize(base, name, folder / name)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_runs_on_the_gpu_as_its_unpacked_weights_do(checkpoints: Path, name: str) -> None:
    classifier = load(checkpoints / name, "cuda")
    logits = classifier.logits(tiny_pixels())
    reference = load(checkpoints / name, "cpu", compute="fp32").logits(tiny_pixels())
    assert classifier.info.compute == choose_compute("auto", name, torch.cuda.get_device_capability(), "cuda").compute
    bound = {"fp32": 1e-4, "fp16": 0.01, "bf16": 0.05}.get(classifier.info.compute, 0.2)
    assert (logits - reference).norm() / reference.norm() < bound
    assert torch.equal(load(checkpoints / name, "cuda").logits(tiny_pixels()), logits)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_runs_in_its_own_module(checkpoints: Path, name: str) -> None:
    classifier = load(checkpoints / name, "cuda", engine="module")
    logits = classifier.logits(tiny_pixels())
    reference = load(checkpoints / name, "cpu", compute="fp32").logits(tiny_pixels())
    assert classifier.info.engine == "module"
    assert classifier.info.compute == {"fp32": "fp32", "bf16": "bf16"}.get(name, "fp16")
    bound = {"fp32": 1e-4, "bf16": 0.05, "int8": 0.1}.get(name, 0.02)
    assert (logits - reference).norm() / reference.norm() < bound
    assert torch.equal(load(checkpoints / name, "cuda", engine="module").logits(tiny_pixels()), logits)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_computes_attention(name: str) -> None:
    query, key, value = torch.randn(3, 2, 4, 197, 64, device="cuda", dtype=torch.float16).unbind(0)
    backend = BACKENDS[name]
    if reason := backend.unavailable(query.device, query.dtype):
        pytest.skip(reason)
    exact = BACKENDS["math"].attend(query.double(), key.double(), value.double())
    assert (backend.attend(query, key, value).double() - exact).norm() / exact.norm() < 5e-3


@pytest.mark.parametrize("name", ["fa2", "cudnn"])
def test_half_precision_attention_refuses_fp32(checkpoints: Path, name: str) -> None:
    with pytest.raises(PetaliteError, match="computes in fp16 or bf16"):
        load(checkpoints / "fp32", "cuda", attention=name)


@pytest.mark.parametrize("name", ["math", "fa2", "efficient", "cudnn"])
def test_what_was_asked_is_what_ran_by_its_kernel(checkpoints: Path, name: str) -> None:
    variant = Variant(name, checkpoints / "fp16", attention=name)
    row = benchmark([variant], samples=3, seconds=0.05, rounds=1, throughput_batches=(2,), device="cuda")[0]
    assert row["status"] == "ok", row["reason"]
    assert row["attention_ran"] == name, row["kernels"]["top"]
    assert row["memory"]["kind"] == "device"
    kernels = row["kernels"]
    parts = sum(kernels[f"{kind}_ms"] for kind in ("attention", "matmul", "dequantize", "other"))
    assert parts == pytest.approx(kernels["total_ms"], rel=1e-6)


@pytest.mark.parametrize("method", ["head", "lora", "qlora", "full"])
def test_training_learns_on_the_gpu(tmp_path: Path, method: str) -> None:
    images = tiny_images(tmp_path / "images")
    tiny_checkpoint(tmp_path / "start")
    recipe = TrainRecipe(method=method, epochs=4, batch_size=8, lr=3e-3, flip=False, augment="none")
    checkpoint = train(images, tmp_path / "start", tmp_path / "out", recipe, device="cuda", workers=0)
    assert checkpoint.plan.format == "fp32"
    last = (tmp_path / "out" / "train" / "metrics.csv").read_text().splitlines()[-1]
    assert float(last.split(",")[5]) > 0.9


def test_out_of_memory_halves_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from petalite.training import loop

    original = loop._Loop._backward

    def limited(self: loop._Loop, pixels: torch.Tensor, targets: torch.Tensor, count: int) -> float:
        if len(pixels) > 4:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        return original(self, pixels, targets, count)

    monkeypatch.setattr(loop._Loop, "_backward", limited)
    images = tiny_images(tmp_path / "images")
    tiny_checkpoint(tmp_path / "start")
    recipe = TrainRecipe(method="head", epochs=1, batch_size=16)
    train(images, tmp_path / "start", tmp_path / "out", recipe, device="cuda", workers=0)
    assert "batch size halved to 4" in capsys.readouterr().err
