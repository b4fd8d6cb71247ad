"""Which engine runs: what is asked for or an error, what is left to `auto` with a sentence that says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from petalite.checkpoint import Checkpoint
from petalite.engine import cpu, load, loading
from petalite.engine.module import PlainModule
from petalite.errors import PetaliteError
from petalite.quantization import quantize
from tests.engine.networks import random_checkpoint
from tests.tiny import tiny_checkpoint, tiny_pixels


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("c") / "tiny")


class FakeFused:
    """An engine that needs no GPU: what it was made with, and answers that count the images."""

    made: tuple[str, str] | None = None
    fails: Exception | None = None
    refuses = False
    attention, scales = "petalite", "per token"

    def __init__(self, network: Any, device: torch.device, compute: str, attention: str) -> None:
        if self.refuses:
            raise PetaliteError(f"no {attention} here")
        type(self).made = (compute, attention)
        self.shape, self.device = network.shape, device

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.fails is not None:
            raise self.fails
        return torch.full((len(pixels), self.shape.classes), float(len(pixels)))

    def report(self) -> dict[str, Any]:
        return {"kernels": {"fp8 16x64x64 plain": "cublas"}}


class FakeGraphs:
    def __init__(self, forward: Any, image_shape: tuple[int, ...], device: torch.device) -> None:
        self.forward, self.image_shape = forward, image_shape

    def report(self) -> dict[str, Any]:
        return {"captures": 0}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[FakeFused]:
    """A Hopper GPU, as far as choosing an engine for it goes."""
    monkeypatch.setattr(loading, "capability_of", lambda device: (9, 0))
    monkeypatch.setattr(loading, "Fused", FakeFused)
    monkeypatch.setattr(loading, "Graphs", FakeGraphs)
    monkeypatch.setattr(FakeFused, "fails", None)
    return FakeFused


def test_plain_modules_run_where_they_are_asked_for(checkpoint: Checkpoint) -> None:
    classifier = load(checkpoint, "cpu", engine="module")
    assert isinstance(classifier.runner, PlainModule) and classifier.model is classifier.runner.model
    info = classifier.info
    assert (info.engine, info.compute, info.scales) == ("module", "fp32", None)
    kept = "the checkpoint is stored in fp32 and keeps its precision"
    assert info.why == f"{kept}; plain PyTorch modules were asked for"
    assert classifier.report() == info.as_dict()
    sdpa = load(checkpoint, "cpu", attention="sdpa").info
    assert (sdpa.engine, sdpa.attention) == ("module", "sdpa") and "attention sdpa is plain PyTorch's" in sdpa.why
    half = load(checkpoint, "cpu", compute="fp16").info
    assert (half.engine, half.why) == ("module", "fp16 was asked for; fp16 on a CPU is plain PyTorch's")


def test_on_a_cpu_its_engine_runs(checkpoint: Checkpoint, tmp_path: Path) -> None:
    classifier = load(checkpoint, "cpu", threads=1)
    info = classifier.info
    assert (info.engine, info.compute, info.attention) == ("openvino", "fp32", "openvino")
    assert info.why == "the checkpoint is stored in fp32 and keeps its precision"
    plain = load(checkpoint, "cpu", engine="module")
    for count in (0, 1, 7):
        pixels = tiny_pixels(count)
        torch.testing.assert_close(classifier.logits(pixels), plain.logits(pixels), rtol=1e-4, atol=1e-5)
    assert classifier.report()["threads"] == 1 and classifier.report()["compiled_batches"] == [1, 8]
    with pytest.raises(PetaliteError, match="the openvino engine has no module to look into"):
        _ = classifier.model
    assert load(checkpoint, "cpu", compute="bf16", engine="openvino").info.why == "bf16 was asked for"

    packed = quantize(checkpoint, "nf4", tmp_path / "nf4")
    info = load(packed, "cpu").info
    assert info.engine == "openvino" and info.why.startswith("nf4 is quantized, its inputs are not calibrated for int8")
    ranges = dict.fromkeys((name for name in packed.plan.layers if name.startswith("blocks.")), (-4.0, 4.0))
    packed = replace(packed, plan=replace(packed.plan, activations=ranges))
    info = load(packed, "cpu", compute="int8").info
    assert (info.compute, info.scales, info.why) == ("int8", "static", "int8 was asked for")
    with pytest.raises(PetaliteError, match=r"^int8 on a CPU needs the ranges"):
        load(checkpoint, "cpu", compute="int8")


def test_a_cpu_engine_that_fails_is_not_passed_over_in_silence(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no kernel\nat all")

    monkeypatch.setattr(cpu, "open_on_cpu", broken)
    info = load(checkpoint, "cpu").info
    assert info.engine == "module" and info.why.endswith("; the CPU engine failed: RuntimeError: no kernel")
    assert "the CPU engine failed: RuntimeError: no kernel; plain PyTorch modules run" in capsys.readouterr().err
    with pytest.raises(PetaliteError, match=r"tiny on cpu: the CPU engine failed: RuntimeError: no kernel$"):
        load(checkpoint, "cpu", engine="openvino")
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PetaliteError, match=r"tiny on cpu: the CPU engine needs OpenVINO: pip install openvino$"):
        load(checkpoint, "cpu", engine="openvino")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "fused"}, r"tiny on cpu: the fused engine runs on NVIDIA GPUs$"),
        ({"engine": "turbo"}, r"unknown engine 'turbo'.*; known: auto, fused, openvino, module$"),
        ({"compute": "fp8"}, r"^fp8 runs on NVIDIA GPUs of compute capability 8\.9 or more, not on a CPU; use bf16"),
        (
            {"compute": "int8", "engine": "module"},
            r"^plain modules do not multiply in int8; use the CPU engine, or bf16",
        ),
        ({"compute": "fp16", "engine": "openvino"}, r"tiny on cpu: fp16 on a CPU is plain PyTorch's$"),
        ({"attention": "fa2", "engine": "openvino"}, r"tiny on cpu: attention fa2 is plain PyTorch's$"),
        ({"compute": "in8"}, r"^unknown compute 'in8' \(did you mean 'int8'\?\)"),
        (
            {"attention": "petalite"},
            r"^attention petalite belongs to the fused engine: the fused engine runs on NVIDIA",
        ),
        ({"device": "cuda:all"}, "no CUDA GPU is usable here"),
        ({"device": "cuda:0,0"}, "names a GPU twice"),
    ],
)
def test_what_cannot_run_on_a_cpu_is_said(checkpoint: Checkpoint, options: dict[str, Any], says: str) -> None:
    if "cuda:all" in options.values() and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(PetaliteError, match=says) as caught:
        load(checkpoint, **{"device": "cpu", **options})
    assert "\n" not in str(caught.value)


def test_on_a_gpu_the_fused_engine_runs(checkpoint: Checkpoint, gpu: type[FakeFused], tmp_path: Path) -> None:
    packed = quantize(checkpoint, "nf4", tmp_path / "nf4", merge=(3, 2))
    classifier = load(packed, "cpu", attention="fa2")
    assert gpu.made == ("fp8", "fa2")
    info = classifier.info
    assert (info.engine, info.compute, info.attention, info.scales) == ("fused", "fp8", "petalite", "per token")
    assert "nf4 is quantized, and a GPU of compute capability 9.0" in info.why and info.merged_tokens == 5
    assert classifier.logits(tiny_pixels(4)).tolist() == [[4.0] * 3] * 4
    assert [len(part) for part in classifier.stream(iter([tiny_pixels(2), tiny_pixels(3)]))] == [2, 3]
    report = classifier.report()
    assert report["kernels"] == {"fp8 16x64x64 plain": "cublas"} and report["graphs"] == {"captures": 0}
    with pytest.raises(PetaliteError, match=r"a batch must be \(N, 3, 32, 32\), got \(2, 3, 32, 31\)"):
        classifier.forward(torch.zeros(2, 3, 32, 31))
    with pytest.raises(PetaliteError, match="the fused engine has no module to look into; load with engine='module'"):
        _ = classifier.model
    assert load(checkpoint, "cpu").info.compute == "fp32"
    assert load(packed, "cpu", compute="int8").info.why == "int8 was asked for"
    module = load(packed, "cpu", engine="module")
    assert module.info.engine == "module" and isinstance(module.runner, PlainModule)


def test_a_model_that_it_does_not_compute_runs_as_it_is(
    tmp_path: Path, gpu: type[FakeFused], capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tiny_checkpoint(tmp_path / "odd", act_layer="quick_gelu")
    classifier = load(odd, "cpu")
    assert classifier.info.engine == "module" and classifier.info.compute == "fp32"
    with pytest.raises(PetaliteError, match=r"odd on cpu: the fused engine does not compute the activation QuickGELU$"):
        load(odd, "cpu", engine="fused")
    with pytest.raises(PetaliteError, match=r"attention petalite belongs to the fused engine: .* QuickGELU$"):
        load(odd, "cpu", attention="petalite")


def test_an_engine_that_fails_is_not_passed_over_in_silence(
    checkpoint: Checkpoint, gpu: type[FakeFused], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "fails", RuntimeError("ptxas exited with 255\nlong trace"))
    classifier = load(checkpoint, "cpu")
    assert classifier.info.engine == "module"
    said = "the fused engine failed: RuntimeError on cpu: ptxas exited with 255; plain PyTorch modules run instead"
    assert said in capsys.readouterr().err
    with pytest.raises(PetaliteError, match=r"tiny on cpu: the fused engine failed: RuntimeError .* exited with 255$"):
        load(checkpoint, "cpu", engine="fused")
    monkeypatch.setattr(gpu, "refuses", True)  # what was asked for, not the engine
    with pytest.raises(PetaliteError, match=r"^no fa3 here$"):
        load(checkpoint, "cpu", attention="fa3")


def test_old_gpus_and_machines_without_triton_run_plain_modules(
    checkpoint: Checkpoint, gpu: type[FakeFused], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    assert (
        loading.fused_unavailable(checkpoint, torch.device("cpu"))
        == "the fused engine needs Triton: pip install triton"
    )
    monkeypatch.setattr(loading, "capability_of", lambda device: (7, 0))
    reason = loading.fused_unavailable(checkpoint, torch.device("cpu"))
    assert reason == "the fused engine needs compute capability 7.5 or more, this GPU has 7.0"
    assert load(checkpoint, "cpu").info.engine == "module"


def test_widths_that_eight_bits_do_not_take_run_in_sixteen(tmp_path: Path, gpu: type[FakeFused]) -> None:
    odd = random_checkpoint(tmp_path / "odd", embed_dim=72, num_heads=2)
    packed = replace(
        odd, plan=replace(odd.plan, format="mixed", layers={**odd.plan.layers, "blocks.0.mlp.fc1": "int4"})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "plain_tensors", lambda self: dict(odd.tensors))
        info = load(packed, "cpu").info
        assert info.compute == "bf16"
        assert info.why.endswith("but blocks.0.attn.qkv has 72 inputs, not a multiple of 16, as fp8 needs")
        with pytest.raises(PetaliteError, match="has 72 inputs, not a multiple of 16, as int8 needs; use bf16 or fp16"):
            load(packed, "cpu", compute="int8")


@pytest.mark.parametrize(("engine", "expected"), [("auto", 1), ("fused", 1), ("module", 0)])
def test_triton_gets_ready_while_a_checkpoint_is_read(
    checkpoint: Checkpoint, gpu: type[FakeFused], monkeypatch: pytest.MonkeyPatch, engine: str, expected: int
) -> None:
    order: list[str] = []
    read = loading.read_checkpoint
    monkeypatch.setattr(loading, "get_ready", lambda device: order.append(f"ready for {device}"))
    monkeypatch.setattr(loading, "read_checkpoint", lambda path: order.append("read") or read(path))
    load(checkpoint.path, "cpu", engine=engine)
    assert order == ["ready for cpu"] * expected + ["read"]
    with pytest.raises(PetaliteError):
        load(checkpoint.path / "nothing", "cpu", engine=engine)
    assert order[expected + 1 :] == ["read"]
