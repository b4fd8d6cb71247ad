"""results.json and results.csv: what a study measured, in the shape that scripts rely on.

results = results_of(rows, environment=…, data=…, baseline="fp32", budget_points=1.0)
write_csv(out / "results.csv", results)
print(summary(results, out))
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from petalite.files import atomic

SCHEMA = 1
_BLOCKS = ("latency", "throughput", "kernels")
_EXTRA = ("latency_by_batch", "throughput_by_batch")


def results_of(
    rows: Sequence[Mapping[str, Any]],
    *,
    environment: Mapping[str, Any],
    data: Mapping[str, Any],
    baseline: str,
    budget_points: float,
) -> dict[str, Any]:
    """The document of results.json, still without recommendations.

    rows: one a variant, with its name, checkpoint, format, attention, compute, plan, status, reason, disk_bytes,
    accuracy (or None) and `measured` (what `petalite.measure.benchmark` returned for it, or None).
    """
    return {
        "schema": SCHEMA,
        "environment": dict(environment),
        "data": dict(data),
        "baseline": baseline,
        "budget_points": budget_points,
        "variants": [_variant(row) for row in rows],
    }


def write_csv(path: Path, results: Mapping[str, Any]) -> None:
    """results.csv: a row a variant, nested fields joined by dots; lists and tables are left to results.json."""
    flat = [_flat(variant) for variant in results["variants"]]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


def summary(results: Mapping[str, Any], out: str | Path) -> str:
    """A study's results as a small table, and where the report is."""
    lines = [f"{'variant':14} {'top-1 %':>8} {'drop':>6} {'p50 ms':>8} {'img/s':>8} {'MB':>8}  attention, compute"]
    for row in results["variants"]:
        if row["status"] != "ok":
            lines.append(f"{row['name']:14} {row['status']}: {row['reason']}")
            continue
        accuracy, latency, rate = row["accuracy"], row["latency"], row["throughput"]
        lines.append(
            f"{row['name']:14} {100 * accuracy['top1']:8.2f} {accuracy['drop_points'] or 0.0:6.2f} {latency['p50_ms']:8.2f} "
            f"{rate['images_per_s']:8.1f} {row['memory']['disk_bytes'] / 1e6:8.2f}  {row['attention_ran']}, {row['compute']}"
        )
    for purpose, choice in results["recommendations"].items():
        lines.append(f"{purpose}: {choice['variant']}")
    return "\n".join([*lines, f"report: {Path(out) / 'report' / 'index.html'}"])


def _variant(row: Mapping[str, Any]) -> dict[str, Any]:
    measured: Mapping[str, Any] = row["measured"] or {}
    status, reason = row["status"], row["reason"]
    if status == "ok" and measured.get("status", "ok") != "ok":
        status, reason = measured["status"], measured.get("reason")
    memory = measured.get("memory")
    return {
        "name": row["name"],
        "checkpoint": row["checkpoint"],
        "format": row["format"],
        "attention": row["attention"],
        "attention_ran": measured.get("attention_ran"),
        "compute": measured.get("compute") or row["compute"],
        "engine": measured.get("engine"),
        "plan": row["plan"],
        "status": status,
        "reason": reason,
        "accuracy": row["accuracy"],
        **{block: measured.get(block) for block in _BLOCKS},
        "memory": {
            "disk_bytes": row["disk_bytes"],
            "peak_bytes": memory["peak_bytes"] if memory else None,
            "kind": memory["kind"] if memory else None,
        },
        **{block: measured.get(block) or [] for block in _EXTRA},
    }


def _flat(variant: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in variant.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            if key.endswith("ci95") and len(value) == 2:
                flat[f"{prefix}{key}_low"], flat[f"{prefix}{key}_high"] = value
        else:
            flat[f"{prefix}{key}"] = "" if value is None else value
    return flat
