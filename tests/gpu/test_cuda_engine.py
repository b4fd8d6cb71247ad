"""The fused engine on a real device: every precision, attention and shape against float64, recorded and streamed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from petalite.attention import BACKENDS
from petalite.calibration import calibrate
from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.device import COMPUTES, capability_of, unavailable_compute
from petalite.engine import OWN_ATTENTION, load
from petalite.engine.trial import time_on_gpu
from petalite.errors import PetaliteError
from petalite.formats import FORMATS, get_format
from petalite.measure.bench import Variant, benchmark
from petalite.quantization import quantize
from petalite.speed import random_checkpoints
from tests.engine.networks import MODELS, checkpoint_of, exact_logits, pixels_for
from tests.tiny import tiny_checkpoint, tiny_pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BOUNDS = {"fp32": 1e-5, "fp16": 0.01, "bf16": 0.05, "int8": 0.06, "fp8": 0.2}


def available(compute: str) -> str:
    device = torch.device("cuda", 0)
    if reason := unavailable_compute(compute, capability_of(device), "cuda"):
        pytest.skip(reason)
    return compute


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double().cpu() - exact.double().cpu()).norm() / exact.double().norm().cpu())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """ViT-S/16 at 224 pixels, random weights: real shapes, 197 tokens, heads of 64."""
    folder = tmp_path_factory.mktemp("small")
    return read_checkpoint(random_checkpoints("vit_small_patch16_224", ["fp32"], folder)["fp32"])


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("name", [*MODELS, "distilled"])
def test_recorded_it_answers_as_the_model_does(tmp_path: Path, name: str, compute: str) -> None:
    checkpoint = checkpoint_of(name, tmp_path / "tiny")
    classifier = load(checkpoint, "cuda", compute=available(compute), engine="fused")
    assert (classifier.info.engine, classifier.info.compute) == ("fused", compute)
    bound = BOUNDS[compute] * (2 if checkpoint.plan.merge else 1)
    pixels = pixels_for(checkpoint, 9)
    wanted, normalized = exact_logits(checkpoint, pixels), classifier.preprocess.normalize(pixels)
    # one by one, too, but judged together: which tokens of an image merge may hang on a rounding
    for size in (1, 9):
        for given in (pixels, normalized):
            assert error(torch.cat([classifier.logits(some) for some in given.split(size)]), wanted) < bound
    assert torch.equal(classifier.logits(pixels), classifier.logits(pixels))


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("batch", [1, 2, 17, 64])
def test_real_shapes_at_every_batch_size(small: Checkpoint, compute: str, batch: int) -> None:
    pixels = pixels_for(small, batch)
    with torch.backends.cudnn.flags(allow_tf32=False):  # the module's convolution would round to 10 bits
        reference = load(small, "cuda", engine="module").logits(pixels)
    logits = load(small, "cuda", compute=available(compute)).logits(pixels)
    assert logits.shape == reference.shape and torch.isfinite(logits).all()
    assert error(logits, reference) < BOUNDS[compute]


@pytest.mark.parametrize("attention", [*BACKENDS, OWN_ATTENTION, "auto"])
@pytest.mark.parametrize("compute", ["bf16", "fp8", "int8"])
def test_every_attention_serves_every_precision(small: Checkpoint, attention: str, compute: str) -> None:
    device = torch.device("cuda", 0)
    if attention in BACKENDS and (reason := BACKENDS[attention].unavailable(device, torch.bfloat16)):
        pytest.skip(reason)
    classifier = load(small, "cuda", attention, available(compute), engine="fused")
    assert classifier.info.attention == attention or attention == "auto"
    pixels = pixels_for(small, 8)
    assert error(classifier.logits(pixels), load(small, "cuda", engine="module").logits(pixels)) < BOUNDS[compute]


@pytest.mark.parametrize("compute", ["fp8", "int8"])
def test_calibrated_scales_and_merging_at_real_shapes(small: Checkpoint, compute: str) -> None:
    pixels = pixels_for(small, 16)
    found = calibrate(small, small.plan, pixels, method="nearest", device=torch.device("cuda", 0)).activations
    spans = {name: span for name, span in found.items() if name.endswith(("attn.proj", "mlp.fc2"))}
    reference = load(small, "cuda", engine="module").logits(pixels)
    static = replace(small, plan=replace(small.plan, activations=spans))
    classifier = load(static, "cuda", compute=available(compute), engine="fused")
    said = {"fp8": "static, from bounds of the weights and calibrated ranges",
            "int8": "static for 12 of 48 products, per token elsewhere"}  # fmt: skip
    assert classifier.info.scales == said[compute]
    assert error(classifier.logits(pixels), reference) < BOUNDS[compute]
    merged = replace(static, plan=replace(static.plan, merge=(8,) * 12))
    expected = load(merged, "cuda", engine="module").logits(pixels)
    # which tokens merge may hang on a rounding, in any of 12 blocks
    assert error(load(merged, "cuda", compute=compute, engine="fused").logits(pixels), expected) < 4 * BOUNDS[compute]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_runs_in_what_is_fastest(tmp_path: Path, name: str) -> None:
    if reason := get_format(name).missing(torch.device("cuda", 0)):
        pytest.skip(reason)
    parent = tiny_checkpoint(tmp_path / "fp32")
    packed = parent if name == "fp32" else quantize(parent, name, tmp_path / name)
    classifier = load(packed, "cuda")
    assert classifier.info.engine == "fused" and classifier.info.why
    found = classifier.logits(tiny_pixels())
    assert error(found, exact_logits(packed, tiny_pixels())) < BOUNDS[classifier.info.compute]
    assert torch.equal(load(packed, "cuda").logits(tiny_pixels()), found)


def test_trials_are_kept_on_disk_and_asked_for_once(small: Checkpoint) -> None:
    compute = "fp8" if capability_of(torch.device("cuda", 0)) >= (8, 9) else "bf16"
    first = load(small, "cuda", compute=compute, engine="fused")
    logits = first.logits(pixels_for(small, 8))
    products = first.report()["kernels"]
    assert products and all(
        ran.split()[0] in ("cublas", "cublaslt", "separate", "added", "petalite")
        for key, ran in products.items()
        if "attention" not in key
    )
    files = list((Path(os.environ["PETALITE_CACHE"]) / "trials").glob("*.json"))
    kept = {key: entry["best"] for path in files for key, entry in json.loads(path.read_text()).items()}
    assert {key: kept[key] for key in products if key in kept} == {
        key: products[key] for key in products if key in kept
    }
    assert any(key in kept for key in products)
    assert torch.equal(load(small, "cuda", compute=compute, engine="fused").logits(pixels_for(small, 8)), logits)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("compute", ["bf16", "fp8"])
@pytest.mark.parametrize("current", [0, 1])
def test_all_gpus_of_a_host_answer_as_the_first_does(small: Checkpoint, compute: str, current: int) -> None:
    pixels = pixels_for(small, 80)
    expected = load(small, "cuda:0", compute=available(compute), engine="fused").logits(pixels)
    with torch.cuda.device(current):  # whichever the caller is on
        classifier = load(small, "cuda:all", compute=compute, engine="fused")
        assert classifier.info.device.count("cuda:") == torch.cuda.device_count()
        bound = BOUNDS[compute] / 2  # other numbers of images may take other kernels
        for given in (pixels, pixels.to("cuda:0"), pixels.to("cuda:1")):
            assert error(classifier.logits(given), expected) < bound
        streamed = list(classifier.stream(pixels.split(16)))
    assert len(streamed) == 5 and error(torch.cat(streamed), expected) < bound
    assert {str(place) for place in classifier.runner.report()} >= {"cuda:0", "cuda:1"}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_trial_runs_on_the_gpu_that_it_is_for() -> None:
    for index in (0, 1, 0):
        device = torch.device("cuda", index)
        square = torch.ones(4096, 4096, dtype=torch.bfloat16, device=device)
        torch.mm(square, square)  # cuBLAS cannot get ready while a graph is recorded
        taken_us = time_on_gpu({"product": lambda of=square: of @ of}, device)["product"]
        assert taken_us > 10  # 137 GFLOP; an empty recording takes none


def test_the_module_is_still_there_for_what_the_engine_does_not_compute(tmp_path: Path) -> None:
    odd = tiny_checkpoint(tmp_path / "odd", act_layer="quick_gelu")
    info = load(odd, "cuda").info
    assert info.engine == "module" and "does not compute the activation QuickGELU" in info.why
    with pytest.raises(PetaliteError, match="QuickGELU"):
        load(odd, "cuda", engine="fused")


def test_a_benchmark_says_which_engine_and_attention_ran(small: Checkpoint) -> None:
    variants = [
        Variant("fused", small.path, OWN_ATTENTION, "bf16"),
        Variant("module", small.path, "fa2", "bf16", "module"),
    ]
    rows = benchmark(variants, samples=3, seconds=0.05, rounds=1, throughput_batches=(8,), device="cuda")
    assert [row["status"] for row in rows] == ["ok", "ok"], [row["reason"] for row in rows]
    assert [row["engine"] for row in rows] == ["fused", "module"]
    assert rows[0]["attention_ran"] == OWN_ATTENTION, rows[0]["kernels"]["top"]
    assert rows[0]["kernels"]["matmul_ms"] > rows[0]["kernels"]["attention_ms"] > 0
