"""A study from end to end on a tiny model: the contract, resuming, skipping, variants that cannot run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import timm

from petalite import study
from petalite.errors import Incomplete, PetaliteError
from petalite.files import read_json
from petalite.measure.names import parse_variant
from petalite.recipe import MeasureRecipe, Recipe, TrainRecipe
from petalite.study import run
from tests.tiny import ARGUMENTS, CLASSES, tiny_checkpoint, tiny_images

VARIANTS = ("fp32", "nf4-fa2", "int8-sdpa", "fp32-cudnn")


def recipe_for(folder: Path, **changes: object) -> Recipe:
    if not (folder / "images").exists():
        tiny_images(folder / "images")
        tiny_checkpoint(folder / "start")
    options: dict[str, object] = {
        "data": str(folder / "images"),
        "model": str(folder / "start"),
        "variants": VARIANTS,
        "train": TrainRecipe(method="head", epochs=4, batch_size=8, lr=0.05, flip=False),
        "measure": MeasureRecipe(throughput_batches=(2,), samples=3, seconds=0.02, rounds=1),
    }
    return Recipe(**{**options, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    run(recipe_for(folder), folder / "out", device="cpu", command=["petalite", "run", "x"])
    return folder


def test_the_folder_follows_the_contract(done: Path) -> None:
    out = done / "out"
    for path in (
        "run.json",
        "results.json",
        "results.csv",
        "train/metrics.csv",
        "report/index.html",
        *(f"checkpoints/{name}/{file}" for name in ("fp32", "nf4", "int8")
          for file in ("config.json", "model.safetensors", "plan.json", "README.md")),
        *(f"predictions/{name}.csv" for name in VARIANTS[:3]),
    ):  # fmt: skip
        assert (out / path).is_file(), path
    assert list((out / "report" / "figures").glob("*.png"))
    record = read_json(out / "run.json")
    assert record["command"] == ["petalite", "run", "x"]
    assert {step["status"] for name, step in record["steps"].items() if name != "evaluate fp32-cudnn"} == {"done"}


def test_results_follow_the_contract(done: Path) -> None:
    results = read_json(done / "out" / "results.json")
    assert results["schema"] == 1
    assert results["baseline"] == "fp32"
    assert results["data"]["images"] == 12
    assert set(results["recommendations"]) == {"edge", "cloud", "memory"}
    assert [row["name"] for row in results["variants"]] == list(VARIANTS)
    for row in results["variants"][:3]:
        assert row["status"] == "ok"
        assert set(row["accuracy"]) >= {
            "top1",
            "top1_ci95",
            "top5",
            "f1_weighted",
            "f1_macro",
            "agreement",
            "drop_points",
            "drop_ci95",
            "mcnemar_p",
        }
        assert set(row["latency"]) >= {"batch_size", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "samples"}
        assert set(row["throughput"]) >= {"batch_size", "images_per_s"}
        assert row["memory"]["disk_bytes"] > 0 < row["memory"]["peak_bytes"]
        assert set(row["kernels"]) >= {"total_ms", "attention_ms", "matmul_ms", "dequantize_ms", "other_ms"}
    assert results["variants"][0]["accuracy"]["top1"] > 0.9
    assert results["variants"][1]["attention_ran"] == "fa2"


def test_a_variant_that_cannot_run_is_a_row_with_its_reason(done: Path) -> None:
    row = read_json(done / "out" / "results.json")["variants"][3]
    assert row["status"] == "skipped"
    assert "cudnn runs on CUDA only" in row["reason"]
    assert row["accuracy"] is row["latency"] is None


def test_predictions_name_classes(done: Path) -> None:
    with (done / "out" / "predictions" / "fp32.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["target"] for row in rows} == set(CLASSES)
    assert sum(row["target"] == row["prediction_1"] for row in rows) > 10
    assert sum(float(rows[0][f"score_{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1, abs=1e-4)


def test_nothing_is_done_twice(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for work in ("start_checkpoint", "train_from", "quantize", "load", "benchmark", "write_report"):
        monkeypatch.setattr(study, work, lambda *_, work=work, **__: pytest.fail(f"{work} was done again"))
    # the variant that cannot run is asked again: the machine may have changed
    monkeypatch.setattr(study, "load", lambda *_, **__: (_ for _ in ()).throw(PetaliteError("still cannot")))
    before = read_json(done / "out" / "results.json")
    monkeypatch.setattr(study, "write_report", lambda out: out)
    after = run(recipe_for(done), done / "out", resume=True, device="cpu", command=["petalite", "run", "x"])
    assert after["variants"][:3] == json.loads(json.dumps(before["variants"][:3]))


def test_a_changed_recipe_repeats_only_what_it_touches(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "train_from", lambda *_, **__: pytest.fail("trained again"))
    quantized: list[str] = []
    original = study.quantize
    monkeypatch.setattr(study, "quantize", lambda *a, **k: (quantized.append(a[1]), original(*a, **k))[1])
    changed = recipe_for(done, variants=("fp32", "nf4-fa2", "bf16"))
    results = run(changed, done / "out", resume=True, device="cpu")
    assert quantized == ["bf16"]
    assert [row["name"] for row in results["variants"]] == ["fp32", "nf4-fa2", "bf16"]


def test_an_ablation_is_a_step_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = recipe_for(tmp_path, variants=("fp32",))
    asked = recipe_for(tmp_path, variants=("fp32",), ablation=("int8",))
    out = tmp_path / "out"
    results = run(asked, out, device="cpu")
    rows = (out / "ablation_results.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["none", "first_last", "blocks.0", "blocks.1"]
    assert read_json(out / "ablation.json")["parent"]["top1"] == results["variants"][0]["accuracy"]["top1"]
    assert 'id="ablation"' in (out / "report" / "index.html").read_text()
    assert read_json(out / "run.json")["steps"]["ablation"]["status"] == "done"
    with monkeypatch.context() as patched:
        patched.setattr(study, "ablate", lambda *_, **__: pytest.fail("ablated again"))
        run(asked, out, resume=True, device="cpu")
        run(plain, out, resume=True, device="cpu")
    assert not (out / "ablation_results.csv").exists()
    assert 'id="ablation"' not in (out / "report" / "index.html").read_text()

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory\nat length")

    monkeypatch.setattr(study, "ablate", fails)
    with pytest.raises(Incomplete, match=r"the ablation failed: out of memory$"):
        run(asked, out, resume=True, device="cpu")
    assert "The step “ablation” failed: out of memory" in (out / "report" / "index.html").read_text()


def test_a_layer_that_is_not_there_is_refused_before_training(tmp_path: Path) -> None:
    named = {"model": "vit_tiny_patch16_224", "model_args": {"depth": 2}}
    for changes, blocks in (({}, 1), (named, 1), ({"model": "vit_tiny_patch16_224"}, 11)):
        with pytest.raises(PetaliteError, match=rf"'blok\.1' names no layer .*'blocks\.1'.* blocks\.{blocks}$"):
            run(recipe_for(tmp_path, keep=("first_last", "blok.1"), **changes), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_format_that_cannot_be_ablated_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(PetaliteError, match="nothing to ablate; name nf4"):
        run(recipe_for(tmp_path, ablation=("bf16",)), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_download_that_fails_leaves_nothing_and_needs_no_flag_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {**ARGUMENTS, "depth": 1}
    shape = {"model": "vit_tiny_patch16_224", "image_size": 32, "model_args": arguments, "variants": ("fp32",)}
    recipe, out = recipe_for(tmp_path, **shape), tmp_path / "out"

    original = timm.create_model

    def unreachable(*names: str, pretrained: bool, **options: object) -> object:
        if pretrained:
            raise OSError("the hub cannot be reached")
        return original(*names, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(PetaliteError, match="the hub cannot be reached"):
        run(recipe, out, device="cpu")
    assert not out.exists()


def test_an_unreadable_image_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_for(tmp_path, variants=("fp32",))
    (tmp_path / "images" / "test" / "rose" / "broken.jpg").write_bytes(b"not an image")
    results = run(recipe, tmp_path / "out", device="cpu")
    assert results["data"]["images"] == 12
    assert "1 unreadable images are left out" in capsys.readouterr().err
    assert "broken.jpg" in str(read_json(tmp_path / "out" / "run.json")["data"]["unreadable"])


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("fp32", ("fp32", "auto", "auto", "module")),
        ("nf4-fa2", ("nf4", "fa2", "auto", "module")),
        ("int8-sdpa-fp16", ("int8", "sdpa", "fp16", "auto")),
        ("nf4", ("nf4", "auto", "auto", "auto")),
        ("int3-g128-sym-petalite-fp8", ("int3-g128-sym", "petalite", "fp8", "auto")),
        ("fp16-fa2-auto-module", ("fp16", "fa2", "auto", "module")),
        ("fp32-auto-auto-fused", ("fp32", "auto", "auto", "fused")),
    ],
)
def test_a_variant_s_name_says_what_it_is(name: str, parsed: tuple[str, str, str, str]) -> None:
    assert parse_variant(name) == parsed


@pytest.mark.parametrize(
    "name", ["nf4-fa3", "fp16-math-fp9", "fp32-fa2-bf16-x", "fp32-fa2-bf16-fused-x", "nf5", "", "-"]
)
def test_a_wrong_variant_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(PetaliteError, match=r"variant|unknown format"):
        run(recipe_for(tmp_path, variants=("fp32", name)), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
