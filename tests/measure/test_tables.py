"""The CSV has a line a (variant, batch size) with where it was measured; the text tables survive missing values."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from petalite.measure.tables import table, write_benchmark_csv

ENVIRONMENT: dict[str, Any] = {
    "petalite": "0.1.0",
    "python": "3.12.3",
    "platform": "Linux",
    "versions": {"torch": "2.11.0", "timm": "1.0.31", "bitsandbytes": None},
    "cpu": {"model": "AMD EPYC", "cores": 2, "flags": ["avx512f", "avx512_bf16"]},
    "gpus": [{"name": "NVIDIA H200", "driver": "580.1", "cuda": "13.0"}],
}
KERNELS = {
    "total_ms": 4.0,
    "attention_ms": 1.0,
    "matmul_ms": 2.0,
    "dequantize_ms": 0.5,
    "other_ms": 0.5,
    "device": "cuda",
    "attention_ran": "fa2",
    "attention_kernel": "flash_fwd_kernel",
    "batch_size": 1,
    "top": [{"name": "nvjet_hsh", "ms": 2.0, "calls": 24.0, "kind": "matmul"}],
}


def row(name: str, **values: Any) -> dict[str, Any]:
    empty = dict.fromkeys(
        (
            "architecture",
            "format",
            "attention",
            "attention_ran",
            "compute",
            "device",
            "threads",
            "reason",
            "image_size",
        ),
    )
    empty |= dict.fromkeys(("latency", "throughput", "memory", "load_s", "parameters"))
    lists = {f"{what}_by_batch": [] for what in ("latency", "throughput", "kernels")}
    return {"name": name, "status": "ok", **empty, **lists, **values}


def latency(batch: int, p50_ms: float) -> dict[str, Any]:
    return {"batch_size": batch, "mean_ms": 2.0, "p50_ms": p50_ms, "p95_ms": 3.0, "p99_ms": 4.0, "samples": 30}


ROWS = [
    row(
        "nf4-fa2",
        image_size=[224, 224],
        attention_ran="fa2",
        compute="fp16",
        device="cuda:0",
        latency=latency(1, 2.0),
        latency_by_batch=[latency(1, 2.0), {"batch_size": 256, "reason": "out of memory"}],
        throughput={"batch_size": 8, "images_per_s": 90.0},
        throughput_by_batch=[{"batch_size": 8, "images_per_s": 90.0, "peak_bytes": 77, "kind": "device"}],
        memory={"disk_bytes": 10, "peak_bytes": 50, "kind": "device"},
        kernels_by_batch=[KERNELS],
    ),
    row("int8", latency=latency(1, 4.0), latency_by_batch=[latency(1, 4.0)], memory={"disk_bytes": 9}),
    row("gone", status="failed", reason="it is gone"),
]


def test_the_csv(tmp_path: Path) -> None:
    write_benchmark_csv(ROWS, tmp_path / "results" / "h200.csv", ENVIRONMENT)
    with (tmp_path / "results" / "h200.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["variant"], line["batch_size"]) for line in lines] == [
        *(("nf4-fa2", "1"), ("nf4-fa2", "8"), ("nf4-fa2", "256"), ("int8", "1"), ("gone", ""))
    ]
    one, eight, large, _, gone = lines
    assert one["latency_p50_ms"] == "2.0" and one["kernels_attention_ms"] == "1.0" and one["images_per_s"] == ""
    assert one["attention_kernel"] == "flash_fwd_kernel" and one["image_size"] == "224x224"
    assert eight["images_per_s"] == "90.0" and eight["batch_peak_bytes"] == "77" and eight["peak_bytes"] == "50"
    assert large["reason"] == "out of memory" and large["latency_p50_ms"] == ""
    assert gone["status"] == "failed" and gone["reason"] == "it is gone"
    assert {(line["hardware"], line["torch"], line["driver"], line["cpu_flags"]) for line in lines} == {
        ("NVIDIA H200", "2.11.0", "580.1", "avx512f avx512_bf16")
    }


def test_the_csv_of_this_machine(tmp_path: Path) -> None:
    write_benchmark_csv(ROWS[:1], tmp_path / "here.csv")
    assert len((tmp_path / "here.csv").read_text().splitlines()) == 4


def test_the_table_compares_with_the_first_variant() -> None:
    lines = table(ROWS).splitlines()
    assert "1.00x" in lines[1] and "90.0" in lines[1] and lines[1].endswith("fa2, fp16, cuda:0")
    assert "0.50x" in lines[2]
    assert lines[3].endswith("failed: it is gone")
    assert table([ROWS[2]]).splitlines()[1].endswith("it is gone")
