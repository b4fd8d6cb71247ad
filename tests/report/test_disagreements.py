"""The photos on which the baseline and a small variant disagree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from petalite.report.disagreements import Disagreements, disagreements
from petalite.report.inputs import read_study

HEADER = "path,target,prediction_1,score_1,error\n"


def compare(folder: Path, formats: dict[str, tuple[str, float]], answers: dict[str, list[str]]) -> Disagreements | None:
    """A study of `formats` (name: format, agreement) whose predictions are `answers` (name: CSV lines)."""
    rows: list[dict[str, Any]] = [
        {"name": name, "format": kind, "status": "ok", "accuracy": {"agreement": agreement}}
        for name, (kind, agreement) in formats.items()
    ]
    (folder / "predictions").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"baseline": "fp32", "variants": rows}))
    for name, lines in answers.items():
        (folder / "predictions" / f"{name}.csv").write_text(HEADER + "\n".join(lines))
    return disagreements(read_study(folder))


BASE = ["a,rose,rose,0.9,", "b,rose,lily,0.6,", "c,rose,iris,0.5,", "d,rose,rose,0.8,", "e,,rose,0.8,"]


def test_what_was_lost_comes_first_and_is_counted(tmp_path: Path) -> None:
    found = compare(
        tmp_path / "s",
        {"fp32": ("fp32", 1.0), "nf4": ("nf4", 0.4)},
        {"fp32": BASE, "nf4": ["a,rose,lily,0.3,", "b,rose,rose,0.7,", "c,rose,lily,0.4,", "d,rose,lily,0.9,", "e,,rose,1,"]},
    )  # fmt: skip
    assert found is not None
    assert [new.path for _, new in found.photos] == ["d", "a", "b", "c"]
    assert (found.compared, found.lost, found.won, found.both_wrong) == (5, 2, 1, 1)
    assert found.often == [("rose", "lily", 2)]


def test_four_bits_are_compared_before_anything_that_agrees_less(tmp_path: Path) -> None:
    formats = {"fp32": ("fp32", 1.0), "int8": ("int8", 0.5), "nf4": ("nf4", 0.9), "int4": ("int4", 0.8)}
    found = compare(tmp_path / "four", formats, dict.fromkeys(formats, BASE))
    assert found is not None
    assert found.variant.name == "int4"
    assert found.photos == ()


def test_without_four_bits_the_least_agreement_decides(tmp_path: Path) -> None:
    formats = {"fp32": ("fp32", 1.0), "fp16": ("fp16", 1.0), "int8": ("int8", 0.9)}
    found = compare(tmp_path / "eight", formats, dict.fromkeys(formats, BASE))
    assert found is not None
    assert found.variant.name == "int8"


def test_photos_are_matched_by_path_and_unreadable_ones_left_out(tmp_path: Path) -> None:
    found = compare(
        tmp_path / "s",
        {"fp32": ("fp32", 1.0), "nf4": ("nf4", 0.4)},
        {"fp32": BASE, "nf4": ["d,rose,lily,0.9,", "a,rose,,,a is damaged", "z,rose,lily,0.9,"]},
    )
    assert found is not None
    assert (found.compared, [new.path for _, new in found.photos]) == (1, ["d"])


def test_nothing_to_compare(tmp_path: Path) -> None:
    assert compare(tmp_path / "one", {"fp32": ("fp32", 1.0)}, {"fp32": BASE}) is None
    formats = {"fp32": ("fp32", 1.0), "nf4": ("nf4", 1.0)}
    assert compare(tmp_path / "no-base", formats, {"nf4": BASE}) is None
    assert compare(tmp_path / "no-other", formats, {"fp32": BASE}) is None
