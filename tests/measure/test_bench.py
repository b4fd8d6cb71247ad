"""Variants take fair turns, failures become rows with a reason, and the row has the contract's blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from petalite.errors import PetaliteError
from petalite.measure.bench import Variant, benchmark
from petalite.measure.process import Worker, WorkerError


class Pretend:
    """A worker without a process: every call is noted, and what its script says fails."""

    log: list[tuple[Any, ...]]
    failing: dict[tuple[Any, ...], str]

    def __init__(self, log: list[tuple[Any, ...]], failing: dict[tuple[Any, ...], str]) -> None:
        self.log, self.failing, self.name, self.alive = log, failing, "", True

    def __enter__(self) -> Pretend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, patience_s: float = 5.0) -> None:
        self.alive = False

    def call(self, *what: Any) -> None:
        self.log.append((self.name, *what))
        if reason := self.failing.get((self.name, *what)):
            if reason.startswith("dies"):
                self.alive = False
            raise WorkerError(reason)

    def ready(self) -> None:
        self.call("ready")

    def load(self, checkpoint: Path, **settings: Any) -> dict[str, Any]:
        self.name = checkpoint.name
        self.call("load")
        return {"format": "fp32", "attention": settings["attention"], "device": "cpu", "before_bytes": 1}

    def warm_up(self, batch: int) -> None:
        self.call("warm_up", batch)

    def latency(self, batch: int, samples: int, seconds: float) -> list[float]:
        self.call("latency", batch)
        return [float(batch)] * samples

    def throughput(self, batch: int, seconds: float) -> dict[str, Any]:
        self.call("throughput", batch)
        return {"images_per_s": 100.0 * min(batch, 8), "peak_bytes": 5 * batch, "kind": "rss"}

    def memory(self) -> dict[str, Any]:
        self.call("memory")
        return {"peak_bytes": 7, "kind": "rss"}

    def profile(self, batch: int) -> dict[str, Any]:
        self.call("profile", batch)
        return {"total_ms": 1.0, "attention_ran": "fa2"}


def pretended(
    tmp_path: Path, names: str, failing: dict[tuple[Any, ...], str] | None = None, **settings: Any
) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]]]:
    log: list[tuple[Any, ...]] = []
    for name in names:
        (tmp_path / name).mkdir(exist_ok=True)
    variants = [Variant(name, tmp_path / name, attention="fa2") for name in names]
    rows = benchmark(variants, start=lambda: Pretend(log, failing or {}), **settings)  # type: ignore[arg-type, return-value]
    return rows, log


def test_each_round_gives_every_variant_a_turn_and_another_begins(tmp_path: Path) -> None:
    rows, log = pretended(tmp_path, "abc", samples=10, rounds=4)
    assert [name for name, what, *_ in log if what == "latency"] == [*"abc", *"bca", *"cab", *"abc"]
    assert all(row["latency"]["samples"] == 12 for row in rows)  # 10 in 4 equal turns is at least 3 each
    assert rows[0]["raw"]["samples_per_round"] == {"1": [3, 3, 3, 3]} and rows[0]["raw"]["rounds"] == 4


def test_the_order_is_load_latency_memory_throughput_kernels(tmp_path: Path) -> None:
    _, log = pretended(tmp_path, "ab", batch_sizes=(1, 4), throughput_batches=(2,), samples=1, rounds=1)
    steps = list(dict.fromkeys((what, *batch) for _, what, *batch in log))
    assert steps == [
        *(("ready",), ("load",), ("warm_up", 1), ("latency", 1), ("memory",), ("warm_up", 4), ("latency", 4)),
        *(("throughput", 2), ("profile", 1), ("profile", 4)),
    ]


def test_blocks_of_a_row(tmp_path: Path) -> None:
    rows, _ = pretended(tmp_path, "a", batch_sizes=(2, 16), throughput_batches=(1, 8, 32), samples=5, rounds=1)
    row = rows[0]
    assert row["status"] == "ok" and row["reason"] is None and row["attention_ran"] == "fa2"
    assert row["latency"] == row["latency_by_batch"][0]
    assert [entry["batch_size"] for entry in row["latency_by_batch"]] == [2, 16]
    assert row["throughput"] == {"batch_size": 8, "images_per_s": 800.0}  # the best; a tie goes to the smaller batch
    assert [entry["peak_bytes"] for entry in row["throughput_by_batch"]] == [5, 40, 160]
    assert row["memory"] == {"disk_bytes": 0, "peak_bytes": 7, "kind": "rss", "before_bytes": 1}
    assert row["kernels"] == {"batch_size": 2, "total_ms": 1.0, "attention_ran": "fa2"}
    assert row["raw"]["latency_ms"] == {"2": [2.0] * 5, "16": [16.0] * 5}


@pytest.mark.parametrize("step", [("load",), ("warm_up", 1), ("latency", 1)])
def test_a_variant_that_fails_is_a_row_and_the_others_go_on(tmp_path: Path, step: tuple[Any, ...]) -> None:
    raw: dict[str, Any] = {}
    rows, log = pretended(
        tmp_path,
        "abc",
        {("b", *step): "it broke"},
        samples=2,
        rounds=2,
        on_raw=lambda name, its: raw.update({name: its}),
    )
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert rows[1]["reason"] == "it broke"
    assert [rows[1][key] for key in ("latency", "throughput", "memory", "kernels", "attention_ran", "raw")] == [
        None
    ] * 6
    assert not [what for name, what, *_ in log if name == "b" and what in ("throughput", "profile")]
    assert list(raw) == ["a", "c"] and raw["a"]["latency_ms"] == {"1": [1.0, 1.0]}
    json.dumps(rows, allow_nan=False)


def test_a_later_batch_size_that_fails_is_an_entry_with_its_reason(tmp_path: Path) -> None:
    rows, log = pretended(tmp_path, "ab", {("a", "warm_up", 64): "out of memory"}, batch_sizes=(1, 64), rounds=2)
    assert rows[0]["status"] == "ok" and rows[0]["latency"]["batch_size"] == 1
    assert rows[0]["latency_by_batch"][1] == {"batch_size": 64, "reason": "out of memory"}
    assert ("a", "latency", 64) not in log and ("a", "profile", 64) not in log
    assert ("b", "latency", 64) in log and ("b", "profile", 64) in log


def test_out_of_memory_ends_that_variants_sweep_alone(tmp_path: Path) -> None:
    rows, log = pretended(
        tmp_path, "ab", {("a", "throughput", 8): "out of memory"}, throughput_batches=(1, 8, 32), rounds=1
    )
    assert rows[0]["throughput_by_batch"][1:] == [{"batch_size": 8, "images_per_s": None, "reason": "out of memory"}]
    assert rows[0]["throughput"] == {"batch_size": 1, "images_per_s": 100.0} and rows[0]["status"] == "ok"
    assert ("a", "throughput", 32) not in log and ("b", "throughput", 32) in log


def test_a_process_that_the_sweep_killed_is_started_again_for_the_kernels(tmp_path: Path) -> None:
    rows, log = pretended(tmp_path, "a", {("a", "throughput", 8): "dies of memory"}, throughput_batches=(8,), rounds=1)
    assert [entry for entry in log if entry[1] == "load"] == [("a", "load")] * 2
    assert rows[0]["kernels"]["total_ms"] == 1.0 and rows[0]["throughput"] is None and rows[0]["status"] == "ok"


def test_a_profile_that_fails_leaves_the_rest_of_the_row(tmp_path: Path) -> None:
    rows, _ = pretended(tmp_path, "a", {("a", "profile", 1): "no profiler here"}, rounds=1)
    assert rows[0]["status"] == "ok" and rows[0]["kernels"] is None and rows[0]["attention_ran"] is None
    assert rows[0]["latency"]["samples"] >= 30


def test_without_a_profile_nobody_claims_to_know_what_ran(tmp_path: Path) -> None:
    rows, log = pretended(tmp_path, "a", profile=False, rounds=1)
    assert rows[0]["attention_ran"] is None and rows[0]["kernels_by_batch"] == []
    assert not [what for _, what, *_ in log if what == "profile"]


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ("", {}, "nothing to measure"),
        ("aa", {}, "two variants are named 'a'"),
        ("a", {"batch_sizes": ()}, "batch sizes"),
        ("a", {"batch_sizes": (0,)}, "batch sizes"),
        ("a", {"throughput_batches": (-1,)}, "batch sizes"),
        ("a", {"samples": 0}, "samples"),
        ("a", {"rounds": 0}, "rounds"),
        ("a", {"seconds": -1.0}, "seconds"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path: Path, names: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PetaliteError, match=message):
        pretended(tmp_path, names, **settings)


def test_real_variants_end_to_end(tiny: dict[str, Path], tmp_path: Path) -> None:
    variants = [
        Variant("fp32", tiny["fp32"], attention="math"),
        Variant("nf4-fa2", tiny["nf4"], attention="fa2"),
        Variant("gone", tmp_path / "gone"),
    ]
    rows = benchmark(
        variants,
        throughput_batches=(2,),
        samples=6,
        seconds=0.05,
        rounds=2,
        device="cpu",
        threads=1,
        batch_sizes=(1, 3),
    )
    fp32, nf4, gone = rows
    assert [row["status"] for row in rows] == ["ok", "ok", "failed"] and "does not exist" in gone["reason"]
    assert (fp32["attention_ran"], nf4["attention_ran"]) == ("math", "fa2")
    assert (fp32["compute"], nf4["compute"]) == ("fp32", "bf16")
    for row in (fp32, nf4):
        assert 0 < row["latency"]["p50_ms"] <= row["latency"]["p95_ms"] <= row["latency"]["p99_ms"]
        assert row["latency"]["samples"] == len(row["raw"]["latency_ms"]["1"]) >= 6
        assert row["memory"]["peak_bytes"] > 100e6 and row["memory"]["kind"] == "rss"
        assert row["throughput"]["images_per_s"] > 0 and row["device"] == "cpu" and row["threads"] == 1
        kernels = row["kernels"]
        parts = [kernels[f"{kind}_ms"] for kind in ("attention", "matmul", "dequantize", "other")]
        assert kernels["total_ms"] == pytest.approx(sum(parts))
    assert nf4["memory"]["disk_bytes"] < fp32["memory"]["disk_bytes"]
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"attention": "sdpaa"}, r"unknown attention 'sdpaa' \(did you mean 'sdpa'\?\)"),
        ({"compute": "bf17"}, r"unknown compute 'bf17' \(did you mean 'bf16'\?\)"),
        ({"engine": "openvin"}, r"unknown engine 'openvin' \(did you mean 'openvino'\?\)"),
    ],
)
def test_an_unknown_word_is_refused_before_a_process_starts(words: dict[str, str], says: str, tmp_path: Path) -> None:
    def start() -> Worker:
        pytest.fail("a process was started")

    with pytest.raises(PetaliteError, match=says):
        benchmark([Variant("a", tmp_path, **words)], start=start)
