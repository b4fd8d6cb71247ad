"""The model card: what the hub reads, what a person reads, and metrics that are added once there are any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from petalite.card import add_rows, complete_card, model_card
from petalite.checkpoint import write_checkpoint
from petalite.errors import PetaliteError
from petalite.files import read_json, write_json
from petalite.plan import Plan
from tests.tiny import tiny_checkpoint

SETTINGS: dict[str, Any] = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3}
CONFIG: dict[str, Any] = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": SETTINGS}


def front(card: str) -> dict[str, Any]:
    metadata: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    return metadata


def test_the_hub_reads_licence_and_base_model() -> None:
    settings = {**SETTINGS, "license": "apache-2.0"}
    notes = {"base model": "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"}
    card = model_card({**CONFIG, "pretrained_cfg": settings}, Plan("nf4", {"head": "bf16"}), 10, notes)
    assert front(card)["base_model"] == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert front(card)["license"] == "apache-2.0"
    plain = model_card(CONFIG, Plan("nf4", {"head": "bf16"}), 10, {})
    assert front(plain)["license"] == "other" and "base_model" not in front(plain)
    assert "| licence | not stated" in plain and "petalite.load(" in plain


def test_what_a_note_holds_stays_in_its_cell(tmp_path: Path) -> None:
    made = tiny_checkpoint(tmp_path / "tiny")
    write_checkpoint(tmp_path / "noted", made.config, made.tensors, made.plan, {"data": "a|b\n| c | d |"})
    assert "| data | a\\|b \\| c \\| d \\| |" in (tmp_path / "noted" / "README.md").read_text()


def test_rows_take_the_place_of_older_ones(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny").path
    add_rows(folder, {"top-1": "90 %", "data": "digits"})
    add_rows(folder, {"top-1": "95 %"})
    card = (folder / "README.md").read_text()
    assert "| top-1 | 95 % |" in card and "90 %" not in card and "| data | digits |" in card
    assert card.index("|---|---|") < card.index("| top-1 |") < card.index("```python")
    (folder / "README.md").write_text("# Something else\n")
    with pytest.raises(PetaliteError, match="is not a card of Petalite's"):
        add_rows(folder, {"top-1": "95 %"})


def test_a_study_completes_the_cards_of_its_own_checkpoints(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "checkpoints" / "nf4").path
    assert not complete_card(folder)
    accuracy = {"top1": 0.9, "top1_ci95": [0.85, 0.94], "drop_points": None}
    failed = {"name": "nf4-sdpa", "checkpoint": "checkpoints/nf4", "status": "failed", "accuracy": None}
    row = {"name": "int8", "checkpoint": "checkpoints/int8", "status": "ok", "accuracy": accuracy}
    data = {"name": "digits", "split": "test", "images": 360, "fingerprint": "83ed"}
    write_json(tmp_path / "results.json", {"data": data, "variants": [failed, row]})
    assert not complete_card(folder)
    write_json(tmp_path / "results.json", {"data": data, "variants": [{**row, "checkpoint": "checkpoints/nf4"}]})
    assert complete_card(folder)
    card = (folder / "README.md").read_text()
    assert "90.00 %, 95 % interval [85.00, 94.00]" in card and "base_model" not in front(card)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "pretrained_cfg": {**config["pretrained_cfg"], "tag": "in1k"}})
    for pretrained in (False, True, True):  # weights that were random at first have no base
        write_json(tmp_path / "run.json", {"recipe": {"model": "vit_tiny_patch16_224", "pretrained": pretrained}})
        assert complete_card(folder)
        wanted = "timm/vit_tiny_patch16_224.in1k" if pretrained else None
        assert front((folder / "README.md").read_text()).get("base_model") == wanted
