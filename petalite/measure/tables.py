"""Benchmark rows as a flat CSV that says where it was measured: one line a (variant, batch size).

write_benchmark_csv(rows, Path("benchmarks/results/h200_torch2.11.csv"))
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from petalite.files import atomic
from petalite.measure.environment import environment as this_environment
from petalite.measure.environment import hardware

_LATENCY = ("mean_ms", "p50_ms", "p95_ms", "p99_ms", "samples")
_KERNELS = ("total_ms", "attention_ms", "matmul_ms", "dequantize_ms", "other_ms")
_VARIANT = ("architecture", "format", "attention", "attention_ran", "compute", "engine", "device", "threads", "status")


def write_benchmark_csv(rows: Sequence[dict[str, Any]], path: Path, environment: dict[str, Any] | None = None) -> None:
    """Write `benchmark`'s rows to `path`, with this machine's hardware and versions unless others are given."""
    table = benchmark_table(rows, environment or this_environment())
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]) if table else [])
        writer.writeheader()
        writer.writerows(table)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """`benchmark`'s rows as text: the first variant is what the others are compared with."""
    lines = [
        f"{'variant':16} {'p50 ms':>9} {'p95 ms':>9} {'speed-up':>8} {'img/s':>9} {'batch':>5} {'peak MB':>8}  ran"
    ]
    first = next((row["latency"]["p50_ms"] for row in rows if row["latency"]), None)
    for row in rows:
        if row["status"] != "ok":
            lines.append(f"{row['name']:16} {row['status']}: {row['reason']}")
            continue
        latency, best = row["latency"], row["throughput"] or {}
        ran = ", ".join(filter(None, (row["attention_ran"], row["compute"], row["device"])))
        lines.append(
            f"{row['name']:16} {latency['p50_ms']:9.2f} {latency['p95_ms']:9.2f} {first / latency['p50_ms']:7.2f}x "
            f"{best.get('images_per_s') or math.nan:9.1f} {best.get('batch_size') or '-':>5} "
            f"{(row['memory'].get('peak_bytes') or math.nan) / 1e6:8.0f}  {ran}"
        )
    return "\n".join(lines)


def benchmark_table(rows: Sequence[dict[str, Any]], environment: dict[str, Any]) -> list[dict[str, Any]]:
    """One dict of columns a (variant, batch size); a variant that failed has one, with its reason and no batch size.

    `peak_bytes` is the variant's: loading and running its first batch size; `batch_peak_bytes` that of this batch.
    """
    machine = _machine(environment)
    return [{**_line(row, batch), **machine} for row in rows for batch in _batches(row)]


def _batches(row: dict[str, Any]) -> list[int | None]:
    entries = [*row["latency_by_batch"], *row["throughput_by_batch"]]
    return sorted({entry["batch_size"] for entry in entries}) or [None]


def _line(row: dict[str, Any], batch: int | None) -> dict[str, Any]:
    latency, throughput, kernels = (_entry(row, what, batch) for what in ("latency", "throughput", "kernels"))
    memory: dict[str, Any] = row["memory"] or {}
    return {
        "variant": row["name"],
        **{key: row.get(key) for key in _VARIANT},
        "image_size": "x".join(map(str, row["image_size"] or ())),
        "batch_size": batch,
        **{f"latency_{key}": latency.get(key) for key in _LATENCY},
        "images_per_s": throughput.get("images_per_s"),
        "reason": row["reason"] or latency.get("reason") or throughput.get("reason"),
        "disk_bytes": memory.get("disk_bytes"),
        "memory_kind": memory.get("kind"),
        "peak_bytes": memory.get("peak_bytes"),
        "batch_peak_bytes": throughput.get("peak_bytes"),
        "load_s": row["load_s"],
        "parameters": row["parameters"],
        **{f"kernels_{key}": kernels.get(key) for key in _KERNELS},
        "attention_kernel": kernels.get("attention_kernel"),
    }


def _entry(row: dict[str, Any], what: str, batch: int | None) -> dict[str, Any]:
    return next((entry for entry in row[f"{what}_by_batch"] if entry["batch_size"] == batch), {})


def _machine(environment: dict[str, Any]) -> dict[str, Any]:
    gpu: dict[str, Any] = next(iter(environment["gpus"]), {})
    return {
        "hardware": hardware(environment),
        "cpu": environment["cpu"]["model"],
        "cores": environment["cpu"]["cores"],
        "cpu_flags": " ".join(environment["cpu"]["flags"]),
        "driver": gpu.get("driver"),
        "cuda": gpu.get("cuda"),
        "platform": environment["platform"],
        "python": environment["python"],
        "petalite": environment["petalite"],
        **{name: environment["versions"][name] for name in ("torch", "timm", "bitsandbytes")},
    }
