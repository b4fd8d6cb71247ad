"""Accuracy against latency: what each variant costs and gives, how sure that is, and the Pareto front.

The front holds the variants that no other beats on both counts (V. Pareto, 1906, in the sense usual since): whoever
chooses among these trades one for the other, and choosing anything else gives something away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from petalite.report import words
from petalite.report.charts.base import Chart, label, look_of, magnitude, tapered
from petalite.report.fitting import legend
from petalite.report.inputs import Study
from petalite.report.palette import Theme
from petalite.report.variants import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pareto_front(variants: list[Variant]) -> list[Variant]:
    """Those that no other variant beats: as fast and as accurate, and better in one. Fastest first."""

    def beats(one: Variant, other: Variant) -> bool:
        a, b = (_latency(one), -_top1(one)), (_latency(other), -_top1(other))
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    front = [variant for variant in variants if not any(beats(other, variant) for other in variants)]
    return sorted(front, key=lambda variant: (_latency(variant), -_top1(variant)))


def spread_ms(study: Study, variant: Variant) -> tuple[float, float]:
    """The 5th and 95th percentile of a variant's latency; without raw samples, its median and p95."""
    samples = study.samples_ms(variant)
    if samples:
        return words.quantile(samples, 0.05), words.quantile(samples, 0.95)
    return _latency(variant), max(_latency(variant), variant.latency.get("p95_ms", 0.0))


def accuracy_latency(study: Study) -> Chart | None:
    """The scatter, or None when no variant has both numbers."""
    shown = [variant for variant in study.ran if variant.top1 is not None and variant.p50_ms]
    if not shown:
        return None
    front = pareto_front(shown)
    batch = int(shown[0].latency.get("batch_size", 1))

    def draw(figure: Figure, theme: Theme) -> None:
        look = look_of(study, theme)
        axes = figure.subplots()
        spreads = {variant.name: spread_ms(study, variant) for variant in shown}
        for place, variant in enumerate(shown):
            x, y, (low, high) = _latency(variant), 100 * _top1(variant), spreads[variant.name]
            ci = variant.top1_ci or (_top1(variant), _top1(variant))
            axes.errorbar(
                x,
                y,
                xerr=[[max(x - low, 0)], [max(high - x, 0)]],
                yerr=[[max(y - 100 * ci[0], 0)], [max(100 * ci[1] - y, 0)]],
                color=look[variant.name].color,
                elinewidth=1.6,
                alpha=0.65,
            )
            axes.plot(
                x,
                y,
                look[variant.name].marker,
                color=look[variant.name].color,
                markersize=tapered(place, len(shown), 12, 9),
                markeredgecolor=theme.surface,
                markeredgewidth=1,
                label=label(variant),
                zorder=4,
                linestyle="none",
            )
        log = magnitude(axes, "x", [edge for pair in spreads.values() for edge in pair])
        if not log:
            axes.set_xlim(left=0)
        if len(front) > 1:
            line = ([_latency(v) for v in front], [100 * _top1(v) for v in front])
            axes.plot(*line, drawstyle="steps-post", color=theme.muted, linewidth=1.2, label="Pareto front", zorder=2)
        if study.budget is not None and study.baseline is not None and study.baseline.top1 is not None:
            limit = 100 * study.baseline.top1 - study.budget
            name = f"budget: {words.plain(study.budget)} below"
            axes.axhline(limit, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)), label=name)
        axes.set_ylabel("top-1, % (95 % interval)")
        axes.set_xlabel(f"latency at batch {batch}, ms (median, p5–p95{', log scale' if log else ''})")
        legend(figure, axes)

    return Chart(
        name="accuracy-latency",
        title="Accuracy against latency",
        alt=f"Scatter of top-1 accuracy against latency for {words.counted(len(shown), 'variant')}, with error bars.",
        caption=_caption(shown, front, study.images),
        draw=draw,
        height=4.5,
    )


def _caption(shown: list[Variant], front: list[Variant], images: int | None) -> str:
    if len(shown) == 1:
        one = shown[0]
        return f"{one.name} reaches {words.percent(one.top1, images)} at {words.milliseconds(one.p50_ms)} an image."
    described = words.listed(
        f"{variant.name} ({words.percent(variant.top1, images)}, {words.milliseconds(variant.p50_ms)})"
        for variant in front
    )
    if len(front) == len(shown):
        return f"All {len(shown)} variants are on the Pareto front: going faster costs accuracy at every step."
    if len(front) == 1:
        return f"{described} is at least as fast and as accurate as every other variant."
    return f"On the Pareto front stand {described}; each of the others is beaten by one of these."


def _top1(variant: Variant) -> float:
    return variant.top1 or 0.0


def _latency(variant: Variant) -> float:
    return variant.p50_ms or 0.0
