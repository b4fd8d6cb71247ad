"""The search on a small model that has learned something: it keeps its budget, says so, and leaves everything behind."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from petalite.budget import search
from petalite.budget.estimates import candidates
from petalite.budget.problem import Merge, Problem
from petalite.budget.race import ratio_of_medians
from petalite.budget.sensitivity import context_damages, sensitivities
from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.errors import Incomplete, PetaliteError
from petalite.evaluation import evaluate
from petalite.plan import Plan
from petalite.quantization import quantize
from petalite.recipe import TrainRecipe
from petalite.training import train
from petalite.verification import verify
from tests.tiny import ARGUMENTS, tiny_checkpoint, tiny_images, tiny_pixels

FORMATS = ("int8-channel", "int4", "int2")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_images(tmp_path_factory.mktemp("data") / "images", train=16, valid=12, test=12)


@pytest.fixture(scope="module")
def parent(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    recipe = TrainRecipe(method="full", epochs=3, batch_size=16, lr=1e-3, augment="none", flip=False, precision="fp32")
    return train(
        images, "vit_tiny_patch16_224", tmp_path_factory.mktemp("parent"), recipe, pretrained=False, image_size=32,
        model_args=ARGUMENTS, device="cpu", workers=0,
    )  # fmt: skip


def run(parent: Checkpoint, data: Path, out: Path, **options: object) -> dict[str, object]:
    settings: dict[str, object] = {
        "formats": FORMATS,
        "images": 24,
        "tries": 3,
        "device": "cpu",
        "workers": 0,
        "max_drop": 10.0,
    }
    return search(parent.path, data, out, **(settings | options))  # type: ignore[arg-type]


def test_it_finds_certifies_and_writes_everything(parent: Checkpoint, images: Path, tmp_path: Path) -> None:
    found = run(parent, images, tmp_path / "out")
    out = tmp_path / "out"
    chosen, proof = found["chosen"], found["certificate"]
    assert isinstance(chosen, dict) and isinstance(proof, dict)
    assert verify(out / "checkpoint").ok
    assert read_checkpoint(out / "checkpoint").disk_bytes == chosen["disk_bytes"]
    assert (
        Plan.from_dict(json.loads((out / "plan.json").read_text())).layers
        == read_checkpoint(out / "checkpoint").plan.layers
    )
    with (out / "search.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"plan-{number}" for number in range(1, len(rows) + 1)]
    assert (out / "figures" / "search-front.png").stat().st_size > 10_000
    assert not (out / "work").exists()
    # the certificate is about the test images and the checkpoint that was written
    accuracy = evaluate(out / "checkpoint", images, baseline=parent.path, device="cpu", workers=0)
    assert proof["drop_points"] == pytest.approx(accuracy["drop_points"])
    assert proof["images"] == 36
    assert json.loads((out / "search.json").read_text())["certificate"] == proof


def test_it_chooses_the_smallest_of_the_plans_that_keep_the_budget(
    parent: Checkpoint, images: Path, tmp_path: Path
) -> None:
    found = run(parent, images, tmp_path / "out", max_drop=5.0, tries=5)
    tries, chosen = found["tries"], found["chosen"]
    assert isinstance(tries, list) and isinstance(chosen, dict)
    allowed = [row for row in tries if row["accepted"]]
    assert chosen["disk_bytes"] == min(row["disk_bytes"] for row in allowed)
    assert all(row["drop_points"] <= 5.0 for row in allowed)


def test_a_budget_that_no_plan_keeps_says_what_comes_closest(
    parent: Checkpoint, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petalite.budget.run._Search._accepts", lambda *_: False)  # this model bears all formats
    with pytest.raises(
        Incomplete, match=r"no plan keeps the budget of 2 points on 36 validation images.*the closest, plan-\d"
    ) as caught:
        run(parent, images, tmp_path / "out", max_drop=2.0, tries=2)
    assert caught.value.exit_code == 1
    assert (tmp_path / "out" / "search.csv").exists() and not (tmp_path / "out" / "checkpoint").exists()
    assert not (tmp_path / "out" / "work").exists()


@pytest.mark.parametrize(
    ("max_drop", "message"),
    [
        (0.5, "36 validation images cannot show .* at most 0.5 in 100.*takes 141; .* --max-drop 2$"),
        (0.0, "no number of images can show that nothing at all is lost"),
    ],
)
def test_images_too_few_for_any_plan_are_refused_before_the_work(
    parent: Checkpoint, images: Path, tmp_path: Path, max_drop: float, message: str
) -> None:
    with pytest.raises(PetaliteError, match=message):
        run(parent, images, tmp_path / "out", max_drop=max_drop)
    assert not (tmp_path / "out").exists()


def test_images_too_few_to_certify_with_are_said_beforehand(
    parent: Checkpoint, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(parent, images, tmp_path / "out", max_drop=6.9, tries=1)
    assert "36 test images cannot certify that a plan loses at most 6.9 in 100" in capsys.readouterr().err
    assert not found["certificate"]["certified"]  # type: ignore[index]


def test_an_interrupted_search_does_not_measure_its_tables_again(
    parent: Checkpoint, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(parent, images, tmp_path / "out")

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("the estimates were there")

    monkeypatch.setattr("petalite.budget.run.estimate", never)
    with pytest.raises(PetaliteError, match="is not empty; add --resume"):
        run(parent, images, tmp_path / "out")
    again = run(parent, images, tmp_path / "out", resume=True)
    assert again["chosen"] == first["chosen"] and again["certificate"] == first["certificate"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": -1.0}, "max_drop must be points of top-1 from 0 to 100, got -1"),
        ({"max_drop": float("nan")}, "max_drop must be"),
        ({"objective": "sise"}, r"unknown objective 'sise' \(did you mean 'size'\?\)"),
        ({"formats": ("int5",)}, "unknown format 'int5'"),
        ({"merge": True}, "merging tokens saves no bytes"),
        ({"tries": 0}, "at least one try"),
        ({"images": 3}, "3 calibration images are too few"),
        ({"confidence": 1.5}, "confidence must be at least 0.5"),
        ({"calibration": "gptk"}, "unknown calibration 'gptk'"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(
    parent: Checkpoint, images: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(PetaliteError, match=message):
        run(parent, images, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_quantized_checkpoint_is_not_searched(parent: Checkpoint, images: Path, tmp_path: Path) -> None:
    child = quantize(parent, "int4", tmp_path / "int4")
    with pytest.raises(PetaliteError, match=r"is already quantized \(int4\)"):
        run(child, images, tmp_path / "out")


def test_coarser_formats_damage_more_and_edges_offer_no_foreign_formats(tmp_path: Path) -> None:
    parent = tiny_checkpoint(tmp_path / "fp32")
    choices = candidates(parent, ("nf4", "int4", "int2"), "bf16")
    assert choices["head"] == choices["pos_embed"] == choices["patch_embed.proj"] == ("int4", "int2", "bf16")
    assert choices["blocks.0.attn.qkv"] == ("nf4", "int4", "int2", "bf16")
    damage = sensitivities(parent, tiny_pixels(16), choices, torch.device("cpu"))
    assert set(damage) == set(choices)
    for formats in damage.values():
        assert formats["int2"] > formats["int4"] > 0
        assert formats["bf16"] < formats["int4"]


def test_damages_in_context_add_up_where_they_are_small(tmp_path: Path) -> None:
    parent = tiny_checkpoint(tmp_path / "fp32")
    built = quantize(parent, "int8-channel", tmp_path / "int8")
    context = context_damages(parent, built, tiny_pixels(16), torch.device("cpu"))
    assert len(context) == 2
    same = quantize(parent, "fp32", tmp_path / "same")
    assert context_damages(parent, same, tiny_pixels(16), torch.device("cpu")) == pytest.approx([0.0, 0.0], abs=1e-9)


def test_speed_is_what_the_objective_minimizes_and_bytes_break_ties() -> None:
    layers = ("blocks.0.mlp.fc1", "head")
    damage = {layer: {"bf16": 0.0, "int8": 0.001, "int4": 0.01} for layer in layers}
    size = {layer: {"bf16": 200.0, "int8": 100.0, "int4": 50.0} for layer in layers}
    ms = {"blocks.0.mlp.fc1": {"bf16": 1.0, "int8": 3.0, "int4": 1.0}}
    merges = (Merge((), 0.0, 10.0, (1.0,)), Merge((8,), 0.02, 6.0, (0.8,)))
    problem = Problem(damage, size, ms, merges, "latency", "bf16", "bf16")
    gentle, bold = problem.solve(0.015), problem.solve(0.05)
    assert gentle is not None and bold is not None
    assert gentle.plan.layers["blocks.0.mlp.fc1"] == "int4" and gentle.plan.merge == () and gentle.ms == 10.0
    assert bold.plan.merge == (8,) and bold.ms == 6.0
    slow = problem.corrected({"blocks.0.mlp.fc1": 100.0}).solve(0.015)
    assert slow is not None and slow.plan.layers["blocks.0.mlp.fc1"] == "bf16"  # int8 would do, and be slower


def test_a_ratio_of_medians_has_an_interval() -> None:
    ratio, low, high = ratio_of_medians([20.0, 21.0, 22.0] * 20, [10.0, 10.5, 11.0] * 20)
    assert low <= ratio <= high and ratio == pytest.approx(2.0) and low > 1
