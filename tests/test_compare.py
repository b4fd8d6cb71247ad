"""Studies side by side: fronts, who is beaten and how surely, changes photo by photo, the gate and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from petalite.compare import compare, write_comparison
from petalite.compare.entries import entries_of, labelled, median_interval
from petalite.compare.front import dominated, pareto_front
from petalite.compare.gate import parse
from petalite.errors import PetaliteError
from petalite.files import read_json, write_json
from tests.command import Petalite, petalite
from tests.report.synthetic import write_study

__all__ = ["petalite"]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("studies")
    chosen = ("fp32", "nf4-fa2", "int8-fa2", "int8-sdpa")
    write_study(root / "monday", variants=chosen, photos=False)
    failed = {"int8-sdpa": ("failed", "out of memory")}
    write_study(root / "tuesday", variants=chosen, photos=False, extra_wrong=9, failed=failed)
    edit(root / "tuesday", "nf4-fa2", "latency", p50_ms=20.0)
    return root / "monday", root / "tuesday"


def edit(study: Path, variant: str, block: str, **values: Any) -> None:
    """Change numbers of a variant in results.json, and forget its raw samples."""
    results = read_json(study / "results.json")
    row = next(row for row in results["variants"] if row["name"] == variant)
    row[block] |= values
    write_json(study / "results.json", results)
    (study / "measure" / f"{variant}.json").unlink(missing_ok=True)


def test_a_front_of_three_measures(studies: tuple[Path, Path]) -> None:
    entries = entries_of(labelled(studies))
    front = pareto_front(entries)
    numbers = {entry.name: tuple(one.value for one in entry.measures.values()) for entry in entries if entry.complete}
    for name, (top1, p50, size) in numbers.items():
        beaten = any(
            a >= top1 and b <= p50 and c <= size and (a, b, c) != (top1, p50, size) for a, b, c in numbers.values()
        )
        assert (name in {entry.name for entry in front}) == (not beaten), name
    assert {one.entry.name for one in dominated(entries)} == numbers.keys() - {entry.name for entry in front}
    assert "tuesday/int8-sdpa" not in numbers


def test_who_is_beaten_and_how_surely(tmp_path: Path) -> None:
    write_study(tmp_path / "a", variants=("fp32", "nf4-fa2"), photos=False, samples=False)
    write_study(tmp_path / "b", variants=("fp32", "nf4-fa2"), photos=False, samples=False)
    edit(tmp_path / "b", "fp32", "latency", p50_ms=5.0)
    found = compare([tmp_path / "a", tmp_path / "b"])
    beaten = next(one for one in found["dominated"] if one["entry"] == "a/fp32")
    assert beaten == {
        "entry": "a/fp32", "by": "b/fp32", "better_in": ["p50_ms"], "within_noise": [], "certain": True,
    }  # fmt: skip
    edit(tmp_path / "b", "nf4-fa2", "memory", disk_bytes=3_000_000)
    edit(tmp_path / "b", "nf4-fa2", "accuracy", top1=0.97, top1_ci95=[0.93, 0.99])
    found = compare([tmp_path / "a", tmp_path / "b"])
    beaten = next(one for one in found["dominated"] if one["entry"] == "a/nf4-fa2")
    assert beaten["better_in"] == ["disk_bytes"] and beaten["within_noise"] == ["top1"]
    assert not beaten["certain"]


def test_other_images_and_machines_are_not_held_against_each_other(tmp_path: Path, petalite: Petalite) -> None:
    for name in ("a", "b", "c"):
        write_study(tmp_path / name, variants=("fp32", "nf4-fa2"), photos=False)
    results = read_json(tmp_path / "b" / "results.json")
    results["data"]["fingerprint"] = "other"
    write_json(tmp_path / "b" / "results.json", results)
    results = read_json(tmp_path / "c" / "results.json")
    results["environment"]["cpu"] = {"model": "another processor", "cores": 64}
    write_json(tmp_path / "c" / "results.json", results)
    found = compare([tmp_path / name for name in ("a", "b", "c")])
    assert [entry["group"] for entry in found["entries"]] == ["A", "A", "B", "B", "C", "C"]
    assert {name.split("/")[0] for name in found["front"]} == {"a", "b", "c"}
    assert all(one["entry"][0] == one["by"][0] for one in found["dominated"])
    assert found["changes"]["variants"][0]["latency_ratio"] is None
    text = petalite("compare", *(tmp_path / name for name in ("a", "b", "c"))).out
    assert "saw different images" in text and "ran on different machines" in text


def test_changes_are_counted_photo_by_photo(studies: tuple[Path, Path]) -> None:
    found = {change["name"]: change for change in compare(studies)["changes"]["variants"]}
    nf4 = found["nf4-fa2"]
    assert nf4["images"] == 120 and nf4["p"] < 0.05
    assert nf4["points"] == pytest.approx(100 * -9 / 120, abs=0.9)
    assert nf4["interval"][0] < nf4["points"] < nf4["interval"][1] < 0 and not nf4["within_noise"]
    assert found["fp32"]["points"] == 0 and found["fp32"]["within_noise"]
    assert found["fp32"]["latency_ratio"] == 1
    assert found["int8-sdpa"]["status"] == "broken"
    backwards = {change["name"]: change for change in compare(studies[::-1])["changes"]["variants"]}
    assert backwards["int8-sdpa"]["status"] == "mended"
    assert backwards["nf4-fa2"]["points"] == pytest.approx(-nf4["points"])


@pytest.mark.parametrize(
    ("rule", "code", "says"),
    [
        ("nf4-fa2.drop_points > 1", 1, "gate FAILS: nf4-fa2.drop_points > 1"),
        ("nf4-fa2.drop_points > 99", 0, "gate passes"),
        ("nf4-fa2.p50_ms.ratio <= 0.9", 1, "gate FAILS"),
        ("fp32.top1.change < 0", 0, "gate passes"),
        ("int8-sdpa.top1 < 0.1", 1, "int8-sdpa failed: out of memory"),
        ("*.p99_ms > 1e6", 1, "gate passes: *.p99_ms > 1e6 (fp32:"),
        ("nf4.drop_points > 1", 2, "no variant 'nf4' (did you mean 'nf4-fa2'?)"),
        ("nf4-fa2.drop_point > 1", 2, "unknown measure 'drop_point' (did you mean 'drop_points'?)"),
        ("nf4-fa2.drop_points", 2, "is no condition"),
        ("drop_points > 1", 2, "is no condition"),
        ("int8-fa2.top1 > 1.2.3", 2, "is no condition"),
    ],
)
def test_the_gate(petalite: Petalite, studies: tuple[Path, Path], rule: str, code: int, says: str) -> None:
    outcome = petalite("compare", *studies, "--fail-if", rule)
    assert outcome.code == code
    assert says in outcome.out + outcome.err


def test_a_gate_that_cannot_judge_does_not_pass(petalite: Petalite, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_study(tmp_path / name, variants=("fp32", "nf4-fa2"), blocks=("latency",), photos=False)
    assert (
        "did not measure top1" in petalite("compare", tmp_path / "a", tmp_path / "b", "--fail-if", "fp32.top1<1").error
    )
    assert parse("a.b.top1.change<=-0.5e-1").number == -0.05
    assert parse("a.b.top1.change<=-0.5e-1").variant == "a.b"


def test_one_document_with_the_gate(petalite: Petalite, studies: tuple[Path, Path]) -> None:
    outcome = petalite("compare", *studies, "--fail-if", "nf4-fa2.drop_points > 1", "--json")
    found = json.loads(outcome.out)
    assert outcome.code == 1 and found["gate"]["passed"] is False
    assert [study["label"] for study in found["studies"]] == ["monday", "tuesday"]
    assert found["entries"][1]["top1"]["ci95"][0] < found["entries"][1]["top1"]["value"]


def test_the_page_holds_everything_and_loads_nothing(studies: tuple[Path, Path], tmp_path: Path) -> None:
    hostile = tmp_path / "<img src=x onerror=alert(1)>"
    write_study(hostile, variants=("fp32", "nf4-fa2"), photos=False)
    page = write_comparison([*studies, hostile], tmp_path / "page").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "&lt;img src=x" in page
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert page.count('src="data:image/png') == 2 and "Accuracy against size" in page
    assert "tuesday/int8-sdpa failed: out of memory" in page


def test_report_of_several_studies_is_the_same_page(
    petalite: Petalite, studies: tuple[Path, Path], tmp_path: Path
) -> None:
    outcome = petalite("report", *studies, "--out", tmp_path / "page")
    assert outcome.code == 0
    assert "What changed from monday to tuesday" in Path(outcome.out.strip()).read_text(encoding="utf-8")


def test_studies_are_told_apart(tmp_path: Path, studies: tuple[Path, Path]) -> None:
    write_study(tmp_path / "other" / "monday", variants=("fp32",), photos=False)
    read = labelled([studies[0], tmp_path / "other" / "monday"])
    assert [one.label.split("/")[-1] for one in read] == ["monday", "monday"] and read[1].label == "other/monday"
    with pytest.raises(PetaliteError, match="at least two"):
        labelled([studies[0]])
    with pytest.raises(PetaliteError, match="is named twice"):
        labelled([studies[0], studies[0]])
    with pytest.raises(PetaliteError, match=r"holds no results\.json"):
        labelled([studies[0], tmp_path])


def test_the_interval_of_a_median() -> None:
    low, high = median_interval([float(number) for number in range(1, 101)], 50.5)
    assert (low, high) == (41.0, 61.0)  # the ranks of 100 samples: 50 less and more 9.8, outwards
    assert median_interval([1.0, 2.0], 1.5) == (1.5, 1.5)
