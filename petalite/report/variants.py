"""The variants of results.json as typed rows, whatever is missing from them.

    rows = variants(results)
    base = baseline(results, rows)
    [row.name for row in rows if row.ok and row.top1 is not None]

A study may have no accuracy (random weights), no kernel profile, or variants that could not run at all: every number
is a float or None here, and NaN, infinity and wrong types count as None, so that nothing after this has to ask twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from petalite.errors import PetaliteError

KINDS = ("attention", "matmul", "dequantize", "other")


@dataclass(frozen=True)
class Variant:
    """One row of results.json. Rates are fractions of 1, drops percentage points, times milliseconds."""

    name: str
    checkpoint: str
    format: str
    attention: str
    attention_ran: str
    compute: str
    status: str
    reason: str
    top1: float | None
    top1_ci: tuple[float, float] | None
    top5: float | None
    f1_weighted: float | None
    f1_macro: float | None
    agreement: float | None
    drop: float | None
    drop_ci: tuple[float, float] | None
    mcnemar_p: float | None
    latency: dict[str, float]  # batch_size, mean_ms, p50_ms, p95_ms, p99_ms, samples: those that were measured
    latency_by_batch: tuple[dict[str, float], ...]
    images_per_s: float | None
    throughput_batch: int | None
    throughput_by_batch: tuple[tuple[int, float], ...]  # (batch size, images/s), by batch size
    batch_failures: tuple[tuple[int, str], ...]  # (batch size, why it could not be measured), by batch size
    disk_bytes: float | None
    peak_bytes: float | None
    memory_kind: str
    kernel_ms: dict[str, float]  # by KINDS; empty without a profile
    kernel_total_ms: float | None
    kernel_device: str
    kernel_top: tuple[dict[str, Any], ...]

    @property
    def ok(self) -> bool:
        """It ran."""
        return self.status == "ok"

    @property
    def p50_ms(self) -> float | None:
        """Median latency, milliseconds, of `latency`'s batch (1)."""
        return self.latency.get("p50_ms")


def variants(results: dict[str, Any]) -> list[Variant]:
    """The variants of a results.json, in its order. Raises PetaliteError when it holds none."""
    rows = results.get("variants") if isinstance(results, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise PetaliteError("results.json holds no list of variants; run the study again to write it")
    if not rows:
        raise PetaliteError("results.json lists no variants; there is nothing to report")
    return [_variant(row, position) for position, row in enumerate(rows)]


def baseline(results: dict[str, Any], rows: list[Variant]) -> Variant | None:
    """The variant that the others are compared with, if it ran."""
    return next((row for row in rows if row.name == results.get("baseline") and row.ok), None)


def block(value: Any, *keys: str) -> dict[str, Any]:
    """The dict at `value[key][…]`, or an empty one where anything on the way is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """`value` as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def text(value: Any) -> str:
    """`value` as text; a list's items with commas, None as an empty string."""
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return "" if value is None else str(value)


def _variant(row: dict[str, Any], position: int) -> Variant:
    accuracy, memory, kernels = block(row, "accuracy"), block(row, "memory"), block(row, "kernels")
    status = text(row.get("status")) or "ok"
    return Variant(
        name=text(row.get("name")) or f"variant {position + 1}",
        checkpoint=text(row.get("checkpoint")),
        format=text(row.get("format")),
        attention=text(row.get("attention")),
        attention_ran=text(row.get("attention_ran")),
        compute=text(row.get("compute")),
        status=status,
        reason=text(row.get("reason")) or ("" if status == "ok" else "no reason was recorded"),
        top1=number(accuracy.get("top1")),
        top1_ci=_interval(accuracy.get("top1_ci95")),
        top5=number(accuracy.get("top5")),
        f1_weighted=number(accuracy.get("f1_weighted")),
        f1_macro=number(accuracy.get("f1_macro")),
        agreement=number(accuracy.get("agreement")),
        drop=number(accuracy.get("drop_points")),
        drop_ci=_interval(accuracy.get("drop_ci95")),
        mcnemar_p=number(accuracy.get("mcnemar_p")),
        latency=_numbers(row.get("latency")),
        latency_by_batch=tuple(filter(None, map(_numbers, _items(row.get("latency_by_batch"))))),
        images_per_s=number(block(row, "throughput").get("images_per_s")),
        throughput_batch=_count(block(row, "throughput").get("batch_size")),
        throughput_by_batch=_sweep(row.get("throughput_by_batch")),
        batch_failures=_failures(row.get("latency_by_batch"), row.get("throughput_by_batch")),
        disk_bytes=number(memory.get("disk_bytes")),
        peak_bytes=number(memory.get("peak_bytes")),
        memory_kind=text(memory.get("kind")),
        kernel_ms=_kernel_ms(kernels),
        kernel_total_ms=number(kernels.get("total_ms")),
        kernel_device=text(kernels.get("device")),
        kernel_top=tuple(item for item in _items(kernels.get("top")) if isinstance(item, dict)),
    )


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _numbers(value: Any) -> dict[str, float]:
    found = {str(key): number(item) for key, item in value.items()} if isinstance(value, dict) else {}
    return {key: item for key, item in found.items() if item is not None}


def _count(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def _interval(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def _sweep(value: Any) -> tuple[tuple[int, float], ...]:
    pairs = [(_count(block(item).get("batch_size")), number(block(item).get("images_per_s"))) for item in _items(value)]
    return tuple(sorted((batch, rate) for batch, rate in pairs if batch and rate is not None))


def _failures(*sweeps: Any) -> tuple[tuple[int, str], ...]:
    entries = [block(entry) for sweep in sweeps for entry in _items(sweep)]
    found = {_count(entry.get("batch_size")): text(entry.get("reason")) for entry in entries if entry.get("reason")}
    return tuple(sorted((batch, reason) for batch, reason in found.items() if batch))


def _kernel_ms(kernels: dict[str, Any]) -> dict[str, float]:
    found = {kind: number(kernels.get(f"{kind}_ms")) for kind in KINDS}
    return {kind: value or 0.0 for kind, value in found.items()} if any(found.values()) else {}
