"""The GPU benchmarks, tried on a CPU with a tiny model: what they compare is the same network, and rows are kept."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.tiny import tiny_checkpoint, tiny_images

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
QUICK = ["--device", "cpu", "--models", "tiny", "--seconds", "0.02", "--rounds", "1", "--images", "6"]


@pytest.fixture
def gpu_peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return importlib.import_module("gpu_peers")


@pytest.fixture
def gpu_pipeline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("gpu_pipeline")


def rows(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.glob("*.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_peers_are_the_same_network_and_each_has_its_row(gpu_peers: ModuleType, tmp_path: Path) -> None:
    only = "transformers-fp32,timm-bf16,bitsandbytes-nf4-sdpa,petalite-bf16"
    options = [*QUICK, "--batches", "2,3", "--only", only, "--out", str(tmp_path)]
    assert gpu_peers.main(options) == 0
    found = {(row["candidate"], row["batch_size"]): row for row in rows(tmp_path)}
    for batch in ("2", "3"):
        fp32, bf16, nf4, ours, lean = (
            found[name, batch]
            for name in ("transformers-fp32", "timm-bf16", "bitsandbytes-nf4-sdpa", "petalite-bf16", "lean-bf16-graph")
        )
        assert float(fp32["fp32_logit_error"]) < 1e-5
        assert (float(fp32["agreement"]), float(fp32["ratio_fp32"])) == (1, 1)
        assert 1e-4 < float(bf16["logit_error"]) < 0.05
        assert (
            float(nf4["logit_error"]) < float(nf4["fp32_logit_error"]) / 2
        )  # against its own weights, and the parent's
        # the same units; how near the two are is the machine's matter
        assert 0.02 < float(bf16["images_per_s"]) * float(bf16["p50_ms"]) / (int(batch) * 1e3) < 50
        assert (bf16["products"], fp32["products"], bf16["images"]) == ("bf16", "", "6")
        assert (ours["status"], lean["status"]) == ("skipped", "skipped")
        assert "the fused engine runs on NVIDIA GPUs" in ours["reason"]
    assert len(found) == len(rows(tmp_path)) == 10
    assert gpu_peers.main(options) == 0
    assert len(rows(tmp_path)) == 10
    again = [*QUICK, "--batches", "2", "--only", "timm-bf16", "--no-anchors", "--again", "--out", str(tmp_path)]
    assert gpu_peers.main(again) == 0
    assert [row["candidate"] for row in rows(tmp_path)[10:]] == ["timm-bf16"]


def test_the_lean_model_is_the_same_network(gpu_peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = importlib.import_module("gpu_candidates")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(candidates, "_graphed", lambda forward, _: forward)
    materials = candidates.random_materials("tiny", torch.device("cpu"))
    pixels = candidates.random_images(5, materials.size)
    exact = materials.exact("fp32", pixels)
    logits = candidates.lean_model(materials).forward(materials.preprocess.normalize(pixels).bfloat16()).float()
    assert 1e-4 < float((logits - exact).norm() / exact.norm()) < 0.03
    assert len(set(exact.argmax(1).tolist())) > 1 or float(exact.std(0).mean()) > 0  # the images differ to the model


def test_one_that_fails_is_a_row_and_the_others_go_on(
    gpu_peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = importlib.import_module("gpu_candidates")

    def broken(_: object) -> None:
        raise ValueError("no such kernel\nand a long trace")

    def later(materials: object) -> object:
        return candidates.Loaded(lambda x: x[:, :, :50, :2].flatten(1) @ torch.zeros(7, 7), torch.float32)

    own = [one for one in candidates.CANDIDATES if one.name == "timm-bf16"]
    failing = [candidates.Candidate("broken", "", broken), candidates.Candidate("later", "", later)]
    monkeypatch.setattr(gpu_peers, "CANDIDATES", (*failing, *own))
    assert gpu_peers.main([*QUICK, "--batches", "1,2", "--out", str(tmp_path)]) == 0
    found = [(row["candidate"], row["status"], row["reason"][:26]) for row in rows(tmp_path)]
    assert found[:3] == found[3:]
    assert found[0] == ("broken", "failed", "ValueError: no such kernel")
    assert found[1][:2] == ("later", "failed")
    assert found[2] == ("timm-bf16", "ok", "")


def test_when_time_is_up_the_rest_is_named_and_the_next_call_goes_on(
    gpu_peers: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*QUICK, "--batches", "1", "--only", "timm-bf16", "--no-anchors", "--out", str(tmp_path)]
    assert gpu_peers.main([*options, "--minutes", "0"]) == 1
    assert "no time for 1: tiny x1 timm-bf16" in capsys.readouterr().err
    assert rows(tmp_path) == []
    assert gpu_peers.main(options) == 0
    assert len(rows(tmp_path)) == 1


def test_rows_of_a_stopped_measurement_say_so_and_are_measured_again(
    gpu_peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(runs: list[Any], *_: object) -> None:
        runs[0].samples_ms.append(1.0)
        raise SystemExit(143)

    options = [*QUICK, "--batches", "1", "--only", "timm-bf16", "--no-anchors", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(gpu_peers, "measure", stopped)
        with pytest.raises(SystemExit):
            gpu_peers.main(options)
    assert gpu_peers.main(options) == 0
    assert [row["status"] for row in rows(tmp_path)] == ["cut short", "ok"]


def test_the_waterfall_has_speed_and_accuracy(gpu_peers: ModuleType, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "fp32")
    photos = tiny_images(tmp_path / "images")
    options = ["--device", "cpu", "--models", "", "--seconds", "0.02", "--rounds", "1", "--batches", "2", "--waterfall"]
    options += ["--checkpoint", str(tmp_path / "fp32"), "--data", str(photos), "--out", str(tmp_path / "out")]
    assert gpu_peers.main(options) == 0
    first, second, *others = rows(tmp_path / "out")
    assert [row["step"] for row in (first, second)] == ["fp32-module", "bf16-module"]
    assert (first["photos"], second["photos"], float(first["drop_points"])) == ("12", "12", 0)
    assert float(second["times_first"]) == pytest.approx(float(first["p50_ms"]) / float(second["p50_ms"]), rel=1e-3)
    assert len(others) == 6
    assert all(row["status"] == "skipped" and row["reason"] for row in others)
    assert int(others[-1]["stored_bytes"]) < int(first["stored_bytes"]) / 4


def test_the_pipeline_reports_the_whole_as_a_share_of_its_slowest_part(
    gpu_pipeline: ModuleType, tmp_path: Path
) -> None:
    options = ["--device", "cpu", "--model", "tiny", "--count", "21", "--batch", "8", "--workers", "0"]
    options += ["--seconds", "0.05", "--size", "40x50", "--out", str(tmp_path / "out")]
    assert gpu_pipeline.main(options) == 0
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    photo = gpu_pipeline.made_files(tmp_path / "made", 1, (40, 50))[0]
    assert gpu_pipeline.main([*options, "--images", str(photo), str(tmp_path / "broken.jpg")]) == 0
    good, bad = rows(tmp_path / "out")
    assert (good["unreadable"], bad["unreadable"]) == ("0", "10")
    assert good["device_decoding_reason"] == "needs a CUDA device"
    for row in (good, bad):
        slowest = min(float(row["decoding_images_per_s"]), float(row["model_images_per_s"]))
        assert float(row["share_of_bound"]) == pytest.approx(float(row["whole_images_per_s"]) / slowest, rel=1e-3)


def test_several_devices_are_held_against_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    gpu_several = importlib.import_module("gpu_several")
    monkeypatch.setattr(gpu_several, "device_names", lambda _: ("cpu", "cpu"))
    options = ["--model", "tiny", "--batch", "16", "--seconds", "0.02", "--rounds", "2", "--out", str(tmp_path)]
    assert gpu_several.main(options) == 0
    found = {(row["way"], row["gpus"]): row for row in rows(tmp_path)}
    assert set(found) == {
        (way, count) for way in ("batches from the host", "one batch divided") for count in ("1", "2")
    }
    for (way, _), row in found.items():
        assert float(row["largest_difference"]) < 1e-5
        times = float(row["images_per_s"]) / float(found[way, "1"]["images_per_s"])
        assert float(row["times_one"]) == pytest.approx(times, rel=0.01) and len(row["rounds"].split()) == 2
