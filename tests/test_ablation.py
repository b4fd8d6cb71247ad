"""Layer ablation: each row is what that checkpoint would have given, shared blocks are run once, chance is called chance."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from petalite.ablation import ablate, sentence, table
from petalite.ablation import run as verb
from petalite.ablation.compare import COLUMNS, Outcomes, compared
from petalite.ablation.passes import all_logits, load_blocks, logits_from_scratch
from petalite.ablation.settings import Setting, from_scratch, passes, settings_of
from petalite.checkpoint import Checkpoint
from petalite.data import open_data
from petalite.engine import load
from petalite.errors import Incomplete, PetaliteError
from petalite.evaluation import evaluate
from petalite.files import read_json
from petalite.quantization import quantize
from tests.command import Petalite, petalite
from tests.tiny import CLASSES, tiny_checkpoint, tiny_images, tiny_pixels

__all__ = ["petalite"]

OPTIONS: dict[str, Any] = {"device": "cpu", "workers": 0, "batch_size": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    tiny_checkpoint(folder / "fp32", depth=3)
    tiny_checkpoint(folder / "small", depth=1)
    tiny_images(folder / "images", test=7)
    return folder


@pytest.fixture(scope="module")
def parent(place: Path) -> Checkpoint:
    return tiny_checkpoint(place / "parent", depth=3, reg_tokens=2)


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    return ablate(place / "fp32", place / "images", out=place / "out", reverse=True, layers=["blocks.1.mlp"], **OPTIONS)


def names_of(blocks: int) -> list[str]:
    inner = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    return ["patch_embed.proj", *(f"blocks.{index}.{name}" for index in range(blocks) for name in inner), "head"]


def test_the_settings_and_what_they_keep() -> None:
    settings = settings_of(names_of(3), patterns=["blocks.2.attn"], reverse=True)
    assert [setting.kept for setting in settings] == [
        "none", "first_last", "blocks.0", "blocks.1", "blocks.2", "all", "blocks.2.attn.qkv", "blocks.2.attn.proj",
        "all_but:blocks.0", "all_but:blocks.1", "all_but:blocks.2",
    ]  # fmt: skip
    kept = {setting.kept: setting for setting in settings}
    assert {name.rsplit(".", 2)[0] for name in kept["first_last"].layers} == {"blocks.0", "blocks.2"}
    assert kept["none"].layers == ()
    assert len(kept["all"].layers) == 12
    assert kept["blocks.2.attn.qkv"].layers == ("blocks.2.attn.qkv",)
    assert {name.rsplit(".", 2)[0] for name in kept["all_but:blocks.1"].layers} == {"blocks.0", "blocks.2"}
    assert [setting.kind for setting in settings][5:9] == ["all", "layer", "layer", "all_but"]


@pytest.mark.parametrize(
    ("blocks", "reverse", "shared", "whole"), [(12, False, 102, 180), (24, False, 348, 648), (12, True, 177, 324)]
)
def test_sharing_takes_less_than_sixty_percent(blocks: int, reverse: bool, shared: int, whole: int) -> None:
    """none 12, kept 12 + 11 + … + 1, first_last 1: 91 of 168; all of them kept 11, its first is that of blocks.0."""
    settings = settings_of(names_of(blocks), reverse=reverse)
    assert (passes(settings), from_scratch(settings)) == (shared, whole)
    assert shared / whole <= 0.6
    if not reverse:
        assert passes([setting for setting in settings if setting.kept != "all"]) == shared - blocks + 1


def test_a_single_block_is_the_first_and_the_last() -> None:
    settings = settings_of(names_of(1))
    assert settings[1].blocks == settings[2].blocks
    assert passes(settings) == 2


@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_every_setting_is_what_quantize_and_load_give(parent: Checkpoint, tmp_path: Path, format: str) -> None:
    settings = settings_of(parent.outline.layers, patterns=["blocks.1.mlp.fc1"], reverse=True)
    classifier, blocks = load_blocks(parent, format, device="cpu")
    pixels = tiny_pixels(6)
    answers = {setting.kept: logits for setting, logits in all_logits(classifier, blocks, settings, pixels)}
    assert set(answers) == {setting.kept for setting in settings}
    assert blocks.calls == passes(settings) < from_scratch(settings)
    for setting in settings:
        checkpoint = quantize(parent, format, tmp_path / setting.kept.replace(":", "-"), keep=setting.layers)
        alone = load(checkpoint, device="cpu", engine="module")
        expected = alone.forward(pixels)
        assert answers[setting.kept].dtype == expected.dtype
        assert torch.equal(answers[setting.kept], expected), setting.kept
        assert torch.equal(logits_from_scratch(classifier, blocks, setting, pixels), expected)
    assert len({tuple(logits.flatten().tolist()) for logits in answers.values()}) > len(settings) / 2


def test_a_parent_that_merges_tokens_is_ablated_as_it_is(parent: Checkpoint) -> None:
    merging = replace(parent, plan=replace(parent.plan, merge=(2, 3, 0)))
    settings = settings_of(parent.outline.layers)
    classifier, blocks = load_blocks(merging, "int8", device="cpu")
    assert classifier.info.merged_tokens == 5
    for setting, logits in all_logits(classifier, blocks, settings, tiny_pixels(3)):
        assert torch.equal(logits, logits_from_scratch(classifier, blocks, setting, tiny_pixels(3))), setting.kept


def test_no_block_is_held_more_than_twice(parent: Checkpoint) -> None:
    settings = settings_of(parent.outline.layers, patterns=["blocks.*"])
    classifier, blocks = load_blocks(parent, "nf4", device="cpu")
    list(all_logits(classifier, blocks, settings, tiny_pixels(1)))
    whole = {id(part) for model in (blocks.quantized, blocks.plain) for part in model.modules()}
    for module in blocks._made.values():
        assert all(id(part) in whole for part in module.modules() if not list(part.children()))
    # making a block out of two leaves both as they were
    again = load_blocks(parent, "nf4", device="cpu")[0]
    assert torch.equal(classifier.forward(tiny_pixels()), again.forward(tiny_pixels()))


def test_the_files_follow_the_contract(place: Path, found: dict[str, Any]) -> None:
    with (place / "out" / "ablation_results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["kept"] for row in rows if row["format"] == "nf4"] == [
        "none", "first_last", "blocks.0", "blocks.1", "blocks.2", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2",
        "all_but:blocks.0", "all_but:blocks.1", "all_but:blocks.2",
    ]  # fmt: skip
    assert {row["format"] for row in rows} == {"nf4", "int8"}
    for row in rows:
        assert float(row["delta_ci95_low"]) <= float(row["top1_delta"]) <= float(row["delta_ci95_high"])
        assert 0 <= float(row["top1"]) <= 1
        assert float(row["kl_divergence"]) >= 0
        assert row["images"] == "21"
    assert read_json(place / "out" / "ablation.json") == json.loads(json.dumps(found))


def test_rows_agree_with_evaluate(place: Path, found: dict[str, Any], tmp_path: Path) -> None:
    for format in found["formats"]:
        for row in (format["rows"][0], format["rows"][2]):
            keep = [] if row["kept"] == "none" else [row["kept"]]
            path = quantize(place / "fp32", format["format"], tmp_path / format["format"] / row["kept"], keep=keep).path
            known = evaluate(path, place / "images", baseline=place / "fp32", **OPTIONS)
            assert row["top1"] == known["top1"]
            assert row["top1_delta"] == pytest.approx(-known["drop_points"])
            assert row["delta_ci95"] == pytest.approx([-end for end in reversed(known["drop_ci95"])])
            assert row["agreement"] == known["agreement"]
            assert row["mcnemar_p"] == known["mcnemar_p"]
            assert known["info"]["compute"] == format["compute"] == "bf16"


def test_the_cost_is_counted_and_below_evaluating_each_alone(found: dict[str, Any]) -> None:
    settings = settings_of(names_of(3), patterns=["blocks.1.mlp"], reverse=True)
    for format in found["formats"]:
        assert format["cost"]["block_passes"] == passes(settings)
        assert format["cost"]["from_scratch"] == from_scratch(settings) == 33
        assert format["cost"]["share"] == passes(settings) / 33
        assert format["cost"]["seconds"] > 0


def outcomes_of(settings: list[Setting], right: dict[str, np.ndarray], kl: dict[str, np.ndarray]) -> Outcomes:
    """Answers 1 where right and 0 where wrong."""
    return Outcomes(
        np.array([right[setting.kept] for setting in settings], dtype=np.int32),
        np.array([kl[setting.kept] for setting in settings]),
    )


def test_chance_is_called_chance_and_a_real_difference_real() -> None:
    """400 images: quantizing loses 40; blocks.0 gets them back, blocks.1 trades 3 for 1, and nearness follows."""
    settings = settings_of(names_of(3))
    random = np.random.default_rng(0)
    ones = np.ones(400, dtype=np.int32)
    lost = np.where(np.arange(400) < 40, 0, ones)
    mixed = lost.copy()
    mixed[:3], mixed[100] = 1, 0
    noise = random.exponential(0.01, 400)
    right = {"none": lost, "first_last": ones, "blocks.0": ones, "blocks.1": mixed, "blocks.2": lost, "all": ones}
    kl = {
        "none": noise, "first_last": noise / 2, "blocks.0": noise / 2, "blocks.1": random.permutation(noise),
        "blocks.2": noise * 2, "all": noise / 100,
    }  # fmt: skip
    rows = {row["kept"]: row for row in compared(settings, outcomes_of(settings, right, kl), ones, ones)}
    assert rows["none"]["gain"] is None
    assert rows["none"]["top1_delta"] == -10
    assert rows["none"]["delta_ci95"][1] < 0
    assert rows["blocks.0"]["top1_delta"] == 0
    assert rows["blocks.0"]["gain"]["top1"] == 10
    assert rows["blocks.0"]["gain"]["top1_p_holm"] == pytest.approx(3 * 2 * 0.5**40)  # McNemar, three blocks
    assert rows["blocks.1"]["gain"]["top1"] == 0.5
    assert rows["blocks.1"]["gain"]["top1_p"] == pytest.approx(0.625)
    assert rows["blocks.1"]["gain"]["top1_p_holm"] == 1
    assert rows["blocks.0"]["gain"]["kl"] == pytest.approx(noise.mean() / 2)
    assert rows["blocks.0"]["gain"]["kl_p_holm"] == pytest.approx(3e-4)
    assert rows["blocks.1"]["gain"]["kl_p_holm"] > 0.05
    assert rows["blocks.2"]["gain"]["kl"] < 0
    low, high = rows["blocks.0"]["gain"]["kl_ci95"]
    assert low < noise.mean() / 2 < high
    document = {
        "format": "nf4",
        "compute": "bf16",
        "rows": [rows[name] for name in rows if name != "all"],
        "unquantized": rows["all"],
    }
    said = sentence({"formats": [document]})
    assert "top-1 differs from the parent's by -10.00 points" in said
    assert "Keeping one block gains at most +10.00 points" in said
    assert "after Holm's correction over 3 blocks blocks.0 is real at 5 %" in said
    assert "By KL, 1 of 3 blocks matters: blocks.0 (removes 50 % of it); keeping blocks.2 makes it worse." in said
    assert "Keeping the first and the last block gains +10.00 points" in said


def test_the_sentence_and_the_table_name_every_format(found: dict[str, Any]) -> None:
    said = sentence(found)
    assert said == found["sentence"]
    for name in ("nf4", "int8"):
        assert f"{name}: with everything quantized" in said
    assert "Of single layers" in said
    assert "Quantized alone" in said
    assert len(table(found).splitlines()) == 21


def test_without_a_folder_nothing_is_written(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = ablate(place / "fp32", open_data(place / "images"), "int8", split="valid", **OPTIONS)
    assert document["data"]["images"] == 12
    assert [format["format"] for format in document["formats"]] == ["int8"]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_ablation_goes_on_where_it_stopped(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(out: str, formats: tuple[str, ...] = ("int8", "nf4"), **options: Any) -> dict[str, Any]:
        return ablate(place / "small", place / "images", formats, out=tmp_path / out, **{**OPTIONS, **options})

    whole = once("whole")
    monkeypatch.setattr(verb, "SAVE_SECONDS", 0.0)
    real_logits, runs = verb.all_logits, []

    def failing(*arguments: Any) -> Any:
        runs.append(1)
        if len(runs) == 5:  # three batches of int8 and one of nf4 are done
            raise KeyboardInterrupt
        return real_logits(*arguments)

    monkeypatch.setattr(verb, "all_logits", failing)
    with pytest.raises(KeyboardInterrupt):
        once("cut")
    assert not (tmp_path / "cut" / "ablation.json").exists()
    monkeypatch.setattr(verb, "logits_of", None)  # the parent was done as well
    again = once("cut", resume=True)
    assert len(runs) == 7
    for one, other in zip(again["formats"], whole["formats"], strict=True):
        assert one["rows"] == other["rows"]
        assert one["cost"]["block_passes"] == other["cost"]["block_passes"]
    once("cut", resume=True)
    assert len(runs) == 7, "done entirely: nothing is run again"
    once("cut", ("int8",), resume=True, reverse=True)
    assert len(runs) == 10, "another option starts that format anew"


def test_changed_images_or_weights_are_not_mixed_with_old_answers(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    first = tiny_checkpoint(tmp_path / "a", seed=0, depth=1)
    other = tiny_checkpoint(tmp_path / "b", seed=1, depth=1)
    ablate(first.path, images, "int8", out=tmp_path / "out", **OPTIONS)
    resumed = ablate(other.path, images, "int8", out=tmp_path / "out", resume=True, **OPTIONS)
    fresh = ablate(other.path, images, "int8", **OPTIONS)
    assert resumed["formats"][0]["rows"] == fresh["formats"][0]["rows"]
    photo = next((images / "test" / CLASSES[0]).iterdir())
    photo.write_bytes(next((images / "test" / CLASSES[1]).iterdir()).read_bytes())
    changed = ablate(other.path, images, "int8", out=tmp_path / "out", resume=True, **OPTIONS)
    assert changed["data"]["fingerprint"] != resumed["data"]["fingerprint"]
    assert changed["formats"][0]["rows"] == ablate(other.path, images, "int8", **OPTIONS)["formats"][0]["rows"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"formats": ["nf5"]}, r"unknown format 'nf5' \(did you mean 'nf4'\?\)"),
        ({"formats": ["fp16"]}, "fp16 keeps every layer as it is"),
        ({"formats": []}, "formats is empty"),
        ({"split": "tset"}, "unknown split 'tset' .did you mean 'test'.*; images has train, valid, test"),
        ({"layers": ["blocks.3"]}, "'blocks.3' names no layer"),
        ({"layers": ["head"]}, "'head' is in 16 bits in every setting"),
        ({"batch_size": 0}, "a batch of 0 images"),
        ({"device": "tpu"}, "unknown device 'tpu'|not supported"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    place: Path, tmp_path: Path, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(PetaliteError, match=says):
        ablate(place / "fp32", place / "images", out=tmp_path / "out", **{**OPTIONS, **arguments})
    assert not (tmp_path / "out").exists()


def test_a_quantized_parent_is_refused(place: Path, tmp_path: Path) -> None:
    quantize(place / "fp32", "int8", tmp_path / "int8")
    with pytest.raises(PetaliteError, match="already quantized"):
        ablate(tmp_path / "int8", place / "images", **OPTIONS)


def test_classes_that_do_not_fit_and_a_full_folder_are_refused(place: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", classes=("a", "b"))
    with pytest.raises(PetaliteError, match="2 classes"):
        ablate(other.path, place / "images", **OPTIONS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(PetaliteError, match="is not empty"):
        ablate(place / "fp32", place / "images", out=tmp_path / "full", **OPTIONS)
    with pytest.raises(PetaliteError, match="will not empty it"):
        ablate(place / "fp32", place / "images", out=tmp_path / "full", force=True, **OPTIONS)
    assert (tmp_path / "full" / "letter.txt").read_text() == "mine"


def test_force_starts_again(place: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "ablation").mkdir(parents=True)  # as a killed run leaves it
    (tmp_path / "out" / "ablation" / "old.npz").write_bytes(b"")
    ablate(place / "small", place / "images", "int8", out=tmp_path / "out", force=True, **OPTIONS)
    assert (tmp_path / "out" / "ablation.json").is_file()
    assert not (tmp_path / "out" / "ablation" / "old.npz").exists()


def test_the_verb_on_the_command_line(petalite: Petalite, place: Path, tmp_path: Path) -> None:
    arguments = ["ablate", place / "small", "--data", place / "images", "--out", tmp_path / "out", "--device", "cpu"]
    outcome = petalite(*arguments, "--formats", "int8", "--layers", "blocks.0.mlp.*", "--reverse")
    assert outcome.code == 0
    for said in ("blocks.0.mlp.fc2", "all_but:blocks.0", "int8: with everything quantized", "block passes an image"):
        assert said in outcome.out
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names >= {"ablation_results.csv", "ablation.json", "ablation-blocks.png", "ablation-first-last.png"}
    assert petalite(*arguments).error.endswith("add --resume to go on with it or --force to start again")
    outcome = petalite(*arguments, "--formats", "int8", "--resume", "--json", "--quiet")
    assert json.loads(outcome.out)["formats"][0]["format"] == "int8"
    assert petalite(*arguments, "--formats", "int9").code == 2
    assert "ablate" in petalite("--help").out


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    (images / "test" / CLASSES[0] / "0.png").write_bytes(b"no image")
    with pytest.raises(Incomplete, match=r"0\.png"):
        ablate(tiny_checkpoint(tmp_path / "a").path, images, "int8", **OPTIONS)
