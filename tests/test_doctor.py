"""The doctor says what runs here, why something else does not, and nothing that should not be pasted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from petalite import doctor, models
from petalite.attention import BACKENDS
from petalite.doctor import diagnose, listing, render, trials
from petalite.errors import PetaliteError
from petalite.formats import FORMATS


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return diagnose()


def test_every_format_backend_and_precision_has_a_verdict(report: dict[str, Any]) -> None:
    runs = report["runs"]["cpu"]
    assert set(runs["formats"]) == set(FORMATS)
    assert set(runs["attention"]) == set(BACKENDS)
    assert set(runs["compute"]) == {"fp32", "fp16", "bf16", "int8", "fp8"}
    assert "runs on NVIDIA GPUs of compute capability 8.9 or more, not on a CPU" in runs["compute"]["fp8"]
    assert runs["compute"]["fp32"] is None
    assert runs["attention"]["math"]["fp32"] is None


def test_what_cannot_run_has_a_reason_and_something_to_do(report: dict[str, Any]) -> None:
    assert report["runs"]["cpu"]["attention"]["cudnn"]["fp32"] == BACKENDS["cudnn"].unavailable(
        torch.device("cpu"), torch.float32
    )
    assert "not:  cudnn: cudnn runs on CUDA only" in render(report)


def test_the_report_is_json_and_names_versions_and_hardware(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report)) == report
    text = render(report)
    assert f"torch {torch.__version__.split('+')[0]}" in text
    assert report["cpu"]["name"] in text
    assert not text.endswith("\n")


def test_a_broken_package_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("/home/someone/site-packages/bnb/libbnb.so: cannot open shared object file\nmore")

    monkeypatch.setattr(trials, "FORMATS", {"nf4": dataclasses.replace(FORMATS["nf4"], pack=broken)})
    report = diagnose()
    reason = report["runs"]["cpu"]["formats"]["nf4"]
    assert reason == "a small trial failed: OSError: …/libbnb.so: cannot open shared object file"
    assert f"not:  nf4: {reason}" in render(report)


def test_a_missing_package_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = dataclasses.replace(FORMATS["nf4"], package="package_that_is_not_there")
    monkeypatch.setattr(trials, "FORMATS", {"nf4": missing})
    assert "pip install package_that_is_not_there" in render(diagnose())


def test_a_backend_that_fails_in_one_precision_runs_in_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_half(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if query.dtype == torch.float16:
            raise RuntimeError("not implemented for 'Half'")
        return BACKENDS["math"].attend(query, key, value)

    monkeypatch.setattr(trials, "BACKENDS", {"math": dataclasses.replace(BACKENDS["math"], attend=no_half)})
    lines = render(diagnose()).splitlines()
    assert "  attention  runs: math fp32 bf16" in lines
    assert any("not:  math fp16: a small trial failed: RuntimeError: not implemented" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/.venv/lib/x.so: missing", "…/x.so: missing"),
        ("cannot open '/home/ann/a b'", "cannot open '…/a b'"),
        (r"C:\Users\ann\lib\x.dll failed", "…/x.dll failed"),
        ("use fp16/bf16/fp32", "use fp16/bf16/fp32"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("ann cannot write", "USER cannot write"),
        ("annotation", "annotation"),
    ],
)
def test_paths_and_the_user_are_taken_out(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    assert doctor._without_private({"a": [text, 1, None]}) == {"a": [expected, 1, None]}


def test_a_gpu_that_torch_cannot_see_is_pointed_out(monkeypatch: pytest.MonkeyPatch, report: dict[str, Any]) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert any("sees no GPU" in line for line in doctor._advice({**report, "gpus": []}))
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    advice = doctor._advice({**report, "gpus": [], "system": {**report["system"], "compiler": None}})
    assert not any("sees no GPU" in line for line in advice)
    assert any("no C compiler" in line for line in advice)


def test_an_older_gpu_is_told_what_to_use(report: dict[str, Any]) -> None:
    gpu = {"device": "cuda:0", "name": "T4", "compute_capability": "7.5", "memory_gib": 15.0, "cuda": "13", "cudnn": 1}
    with_gpu = {**report, "gpus": [gpu]}
    assert "--compute fp16" in doctor._advice(with_gpu)[0]
    assert "T4, compute capability 7.5, 15.0 GiB" in render(with_gpu)


def test_a_checkpoint_is_verified_too(tmp_path: Path) -> None:
    folder = tmp_path / "private" / "model"
    report = diagnose(folder)
    assert report["checkpoint"]["ok"] is False
    text = render(report)
    assert "checkpoint …/model" in text
    assert "does not exist" in text
    assert "private" not in text


@pytest.mark.parametrize("kind", ["formats", "attention", "compute", "engines"])
def test_a_listing_says_what_each_is_and_whether_it_runs(kind: str) -> None:
    known = {
        "formats": list(FORMATS),
        "attention": [*BACKENDS, "petalite", "openvino"],
        "compute": ["fp32", "fp16", "bf16", "int8", "fp8"],
        "engines": ["fused", "openvino", "module"],
    }
    rows = listing(kind, "cpu")
    assert [row["name"] for row in rows] == known[kind]
    for row in rows:
        assert row["about"]
        assert row["runs"] == (row["reason"] is None)
        assert row["runs"] or row["reason"] in row["about"]


def test_a_listing_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(PetaliteError, match=r"unknown kind 'format' \(did you mean 'formats'\?\)"):
        listing("format")


def test_the_listed_models_are_the_supported_ones() -> None:
    listed = {row["name"]: row["about"] for row in listing("models")}
    assert "augreg_in21k_ft_in1k" in listed["vit_base_patch16_224"]
    for name in ["vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_wee_patch16_reg1_gap_256", *list(listed)[-3:]]:
        assert name in listed
        models.build({"architecture": name, "num_classes": 2})
    refused = ["vit_base_patch16_xp_224", "vit_base_patch16_rpn_224", "vit_small_patch16_18x2_224"]
    for name in [*refused, "vit_pwee_patch16_reg1_gap_256", "vit_relpos_small_patch16_224"]:
        assert name not in listed
        with pytest.raises(PetaliteError, match="not supported"):
            models.build({"architecture": name, "num_classes": 2})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_described(report: dict[str, Any]) -> None:
    assert report["gpus"][0]["name"] in render(report)
    assert report["runs"]["cuda:0"]["compute"]["fp16"] is None
