"""The rules behind edge, cloud and memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from petalite.errors import PetaliteError
from petalite.report import recommend


def variant(
    name: str,
    drop: float | None,
    mb: float | None = 10,
    rate: float | None = 100,
    peak: float | None = 500,
    ms: float = 10,
    high: float | None = None,
    ran: str = "fa2",
    status: str = "ok",
) -> dict[str, Any]:
    interval = None if drop is None else [drop - 0.5, drop + 0.5 if high is None else high]
    measured = {
        "accuracy": {"top1": 0.9, "drop_points": drop, "drop_ci95": interval},
        "latency": {"batch_size": 1, "p50_ms": ms},
        "throughput": {"batch_size": 32, "images_per_s": rate},
        "memory": {"disk_bytes": mb and mb * 1e6, "peak_bytes": peak and peak * 1e6, "kind": "rss"},
    }
    blocks = measured if status == "ok" else dict.fromkeys(measured)
    return {"name": name, "format": name, "attention": "fa2", "attention_ran": ran, "status": status, **blocks}


def results(*variants: dict[str, Any], budget: float | None = 1.0) -> dict[str, Any]:
    return {"baseline": "fp32", "budget_points": budget, "variants": list(variants)}


FP32 = variant("fp32", 0.0, mb=20, rate=50, peak=900, ms=20)


def chosen(found: dict[str, Any]) -> tuple[Any, Any, Any]:
    return found["edge"]["variant"], found["cloud"]["variant"], found["memory"]["variant"]


def test_each_rule_looks_at_its_own_number() -> None:
    found = recommend(
        results(
            FP32,
            variant("small", 0.2, mb=3, rate=60, peak=800),
            variant("fast", 0.2, mb=9, rate=400, peak=700),
            variant("lean", 0.2, mb=8, rate=70, peak=100),
        )
    )
    assert chosen(found) == ("small", "fast", "lean")
    assert "3.00 MB (6.7× smaller than fp32)" in found["edge"]["why"]
    assert "400 images/s at batch 32 (8.0× faster than fp32)" in found["cloud"]["why"]
    assert "100 MB (9.0× less than fp32)" in found["memory"]["why"]


def test_what_is_over_the_budget_is_left_out_however_good_it_is() -> None:
    found = recommend(results(FP32, variant("tiny", 1.01, mb=1, rate=999, peak=1), variant("fair", 0.9, mb=9)))
    assert chosen(found) == ("fair", "fair", "fair")


def test_a_drop_of_exactly_the_budget_is_allowed() -> None:
    assert recommend(results(FP32, variant("edge", 1.0, mb=1)))["edge"]["variant"] == "edge"


def test_an_interval_that_reaches_beyond_the_budget_is_said() -> None:
    unsure = recommend(results(FP32, variant("nf4", 0.6, mb=3, high=1.4)))["edge"]["why"]
    sure = recommend(results(FP32, variant("nf4", 0.2, mb=3, high=0.9)))["edge"]["why"]
    assert "cannot exclude a drop beyond the budget of 1" in unsure
    assert "0.10 to 1.40" in unsure
    assert "cannot exclude" not in sure
    assert "−0.30 to 0.90" in sure


def test_equal_sizes_are_decided_by_latency_and_the_same_kernel_is_noise() -> None:
    pair = (variant("nf4-sdpa", 0.1, mb=3, ms=12.9), variant("nf4-fa2", 0.1, mb=3, ms=12.1))
    found = recommend(results(FP32, *pair))["edge"]
    assert found["variant"] == "nf4-fa2"
    assert "Equal to nf4-sdpa (12.9 ms)" in found["why"]
    assert "noise" in found["why"]
    other = recommend(results(FP32, pair[0] | {"attention_ran": "efficient"}, pair[1]))["edge"]
    assert "noise" not in other["why"]


def test_what_remains_equal_is_decided_by_order() -> None:
    twins = (variant("b", 0.1, mb=3), variant("a", 0.1, mb=3))
    assert recommend(results(FP32, *twins))["edge"]["variant"] == "b"


def test_nothing_within_the_budget_leaves_the_baseline_and_says_so() -> None:
    found = recommend(results(FP32, variant("nf4", 4.0, mb=1), variant("int8", 2.5, mb=5)))
    assert chosen(found) == ("fp32", "fp32", "fp32")
    assert "No other variant stays within the budget of 1 point" in found["edge"]["why"]
    assert "int8, loses 2.50" in found["edge"]["why"]


def test_a_baseline_that_wins_is_said_to_win() -> None:
    found = recommend(results(FP32, variant("nf4", 0.1, mb=3, rate=20)))
    assert found["cloud"]["variant"] == "fp32"
    assert found["cloud"]["why"].startswith("No other variant within the budget has a higher throughput")


def test_failed_variants_are_never_recommended() -> None:
    assert recommend(results(FP32, variant("nf4", 0.0, mb=1, status="failed")))["edge"] == {
        "variant": "fp32",
        "why": "It is the only variant that ran.",
    }


def test_no_accuracy_means_no_variant_is_known_to_be_within_the_budget() -> None:
    found = recommend(results(variant("fp32", None), variant("nf4", None, mb=1)))
    assert found["edge"]["variant"] == "fp32"
    assert "No drop of accuracy was measured" in found["edge"]["why"]


def test_without_a_budget_every_measured_drop_is_allowed() -> None:
    assert recommend(results(FP32, variant("nf4", 9.0, mb=1), budget=None))["edge"]["variant"] == "nf4"


def test_a_number_that_was_not_measured_cannot_win() -> None:
    found = recommend(results(FP32, variant("nf4", 0.1, mb=None), variant("int8", 0.1, mb=5)))
    assert found["edge"]["variant"] == "int8"
    blank = recommend(results(variant("fp32", 0, rate=None), variant("nf4", 0.1, rate=None)))["cloud"]
    assert blank["variant"] == "fp32"
    assert "measured for no variant" in blank["why"]


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_a_baseline_that_did_not_run(status: str) -> None:
    base = variant("fp32", None, status=status)
    assert recommend(results(base))["edge"]["variant"] is None
    found = recommend(results(base, variant("nf4", None)))["edge"]
    assert found["variant"] is None
    assert "baseline did not run" in found["why"]


def test_the_answer_is_json_and_does_not_change() -> None:
    study = results(FP32, variant("nf4", 0.1, mb=3), variant("int8", -0.2, mb=5))
    first = json.dumps(recommend(study), allow_nan=False)
    assert first == json.dumps(recommend(json.loads(json.dumps(study))))
    assert "\u00a0" not in json.loads(first)["edge"]["why"]


@pytest.mark.parametrize("bad", [{}, {"variants": []}, {"variants": "fp32"}, {"variants": ["fp32"]}])
def test_results_without_variants_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(PetaliteError, match=r"results\.json"):
        recommend(bad)
