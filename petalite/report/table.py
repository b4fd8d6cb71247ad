"""The table of variants: each cell's number, its interval, and how it compares with the baseline, in words.

    rows = table(study)
    rows[1].cells[0].main, rows[1].cells[0].sub      # "97.6 %", "96.3–98.5 %"

And `remarks`: what a reader of the table should not have to find alone (slower than the baseline, within noise, the
same attention kernel).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from petalite.report import words
from petalite.report.inputs import Study
from petalite.report.recommend import within_budget
from petalite.report.variants import Variant

COLUMNS = (
    "Top-1",
    "Top-5",
    "F1, macro",
    "Agrees",
    "Drop, points",
    "On disk",
    "Latency",
    "Images/s",
    "Peak memory",
    "Attention",
)


@dataclass(frozen=True)
class Cell:
    """One number: as text, what stands under it, the exact value as a tooltip, and what to sort by."""

    main: str
    subs: tuple[str, ...] = ()
    exact: str = ""
    sort: float | None = None
    worse: bool = False  # whether the last of `subs` says something a reader may not expect


@dataclass(frozen=True)
class Row:
    """A variant's row. `cells` is empty for one that did not run."""

    variant: Variant
    is_baseline: bool
    beyond: bool  # over the budget
    cells: tuple[Cell, ...] = field(default=())


def table(study: Study) -> list[Row]:
    """One row a variant, in the study's order; COLUMNS names the cells."""
    rows = []
    for variant in study.variants:
        base = variant is study.baseline
        beyond = variant.ok and variant.drop is not None and not within_budget(variant, study.baseline, study.budget)
        rows.append(Row(variant, base, beyond, _cells(study, variant) if variant.ok else ()))
    return rows


def _cells(study: Study, variant: Variant) -> tuple[Cell, ...]:
    return (
        Cell(
            words.percent(variant.top1, study.images),
            _some(words.percent_interval(variant.top1_ci, study.images)),
            sort=variant.top1,
        ),
        Cell(words.percent(variant.top5, study.images), sort=variant.top5),
        Cell(
            words.percent(variant.f1_macro, study.images),
            exact=f"weighted F1 {words.percent(variant.f1_weighted, study.images)}",
            sort=variant.f1_macro,
        ),
        Cell(words.DASH) if variant is study.baseline else _agreement(variant, study.images),
        Cell("baseline") if variant is study.baseline else _drop(variant),
        _disk(variant, study.baseline),
        _latency(variant, study.baseline),
        _throughput(variant, study.baseline),
        _peak(variant, study.baseline),
        _attention(variant),
    )


def _agreement(variant: Variant, images: int | None) -> Cell:
    return Cell(words.percent(variant.agreement, images), sort=variant.agreement)


def _drop(variant: Variant) -> Cell:
    noise = "within noise" if within_noise(variant) else ""
    subs = _some(words.points_interval(variant.drop_ci), ", ".join(_some(words.p_value(variant.mcnemar_p), noise)))
    return Cell(words.points(variant.drop), subs, exact="McNemar's p, paired on the same images", sort=variant.drop)


def _disk(variant: Variant, base: Variant | None) -> Cell:
    ratio = _against(variant, base, variant.disk_bytes, base.disk_bytes if base else None, "larger", "smaller")
    return Cell(
        words.megabytes(variant.disk_bytes),
        _some(ratio),
        exact=_bytes(variant.disk_bytes),
        sort=variant.disk_bytes,
        worse=ratio.endswith("larger"),
    )


def _latency(variant: Variant, base: Variant | None) -> Cell:
    ratio = _against(variant, base, variant.p50_ms, base.p50_ms if base else None, "slower", "faster")
    known = {name: variant.latency.get(f"{name}_ms") for name in ("p95", "p99", "mean")}
    tail = " · ".join(
        f"{name} {words.milliseconds(known[name]).split(words.NBSP)[0]}" for name in ("p95", "p99") if known[name]
    )
    return Cell(
        words.milliseconds(variant.p50_ms),
        _some(tail, ratio),
        exact=f"median; mean {words.milliseconds(known['mean'])}",
        sort=variant.p50_ms,
        worse=ratio.endswith("slower"),
    )


def _throughput(variant: Variant, base: Variant | None) -> Cell:
    rate = variant.images_per_s
    ratio = _against(variant, base, rate, base.images_per_s if base else None, "faster", "slower")
    at = f"at batch {variant.throughput_batch}" if variant.throughput_batch else ""
    return Cell(words.per_second(rate), _some(at, ratio), sort=rate, worse=ratio.endswith("slower"))


def _peak(variant: Variant, base: Variant | None) -> Cell:
    ratio = _against(variant, base, variant.peak_bytes, base.peak_bytes if base else None, "more", "less")
    size = variant.peak_bytes
    return Cell(words.megabytes(size), _some(ratio), exact=_bytes(size), sort=size, worse=ratio.endswith("more"))


def _attention(variant: Variant) -> Cell:
    if not variant.attention_ran:
        return Cell(variant.attention or words.DASH, _some("kernel not recorded" if variant.attention else ""))
    if variant.attention in (variant.attention_ran, ""):
        return Cell(variant.attention_ran)
    return Cell(f"{variant.attention} → {variant.attention_ran}", exact="asked → the kernel that ran")


def within_noise(variant: Variant) -> bool:
    """Whether the interval of the drop includes no drop at all."""
    return variant.drop_ci is not None and variant.drop_ci[0] <= 0 <= variant.drop_ci[1]


def remarks(study: Study) -> list[str]:
    """Sentences on what the table means: speed, noise, attention, batches that were too large."""
    base = study.baseline
    found = [*_speed(study, base)] if base else []
    others = [variant for variant in study.ran if variant is not base and variant.drop_ci is not None]
    noise = [variant.name for variant in others if within_noise(variant)]
    if base and noise:
        those = "the interval includes 0" if len(noise) == 1 else "each interval includes 0"
        found.append(f"The difference in top-1 between {base.name} and {words.listed(noise)} is within noise: {those}.")
    real = [variant for variant in others if variant.drop_ci and variant.drop_ci[0] > 0]
    if base and real:
        lost = words.listed(f"{variant.name} ({words.points(variant.drop)} points)" for variant in real)
        found.append(f"The loss of accuracy is more than noise in {lost}: the interval stays above 0.")
    return [*found, *_same_kernel(study), *_batches(study)]


def _speed(study: Study, base: Variant) -> list[str]:
    others = [variant for variant in study.ran if variant is not base]
    batch = int(base.latency.get("batch_size", 1))
    sentences = []
    timed = [(v, words.compared(v.p50_ms, base.p50_ms, "slower", "faster")) for v in others]
    slow = [f"{v.name} {how} ({words.milliseconds(v.p50_ms)})" for v, how in timed if how.endswith("slower")]
    if slow:
        none = " No variant is faster." if not any(how.endswith("faster") for _, how in timed) else ""
        sentences.append(
            f"At batch {batch}, slower than {base.name} ({words.milliseconds(base.p50_ms)}) on this machine: "
            f"{words.listed(slow)}.{none}"
        )
    rates = [(v, words.compared(v.images_per_s, base.images_per_s, "faster", "slower")) for v in others]
    low = [f"{v.name} {how}" for v, how in rates if how.endswith("slower")]
    if low:
        sentences.append(
            f"Each at its best batch size, below the {words.per_second(base.images_per_s)} images/s of {base.name}: "
            f"{words.listed(low)}."
        )
    return sentences


def _same_kernel(study: Study) -> list[str]:
    """Variants that differ only in the attention they asked for, and got the same."""
    groups: dict[tuple[str, ...], list[Variant]] = defaultdict(list)
    for variant in study.ran:
        if variant.attention_ran:
            key = (variant.checkpoint, variant.format, variant.compute, variant.attention_ran)
            groups[key].append(variant)
    sentences = []
    for (*_, ran), group in groups.items():
        asked = list(dict.fromkeys(variant.attention for variant in group))
        if len(asked) > 1:
            names = words.listed(variant.name for variant in group)
            sentences.append(
                f"{names} asked for different attention ({words.listed(asked)}), but the same kernel ran ({ran}): "
                "what separates their speed is noise."
            )
    return sentences


def _batches(study: Study) -> list[str]:
    """Batch sizes that were too much, and why."""
    return [
        f"{variant.name} could not run {words.listed(f'batch {batch} ({reason})' for batch, reason in failed)}."
        for variant in study.ran
        if (failed := variant.batch_failures)
    ]


def _against(
    variant: Variant, base: Variant | None, value: float | None, reference: float | None, more: str, less: str
) -> str:
    return "" if base is None or variant is base else words.compared(value, reference, more, less, "same")


def _bytes(size: float | None) -> str:
    return "" if size is None else f"{size:,.0f} bytes"


def _some(*parts: str) -> tuple[str, ...]:
    return tuple(part for part in parts if part)
