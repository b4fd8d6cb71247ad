"""The comparison's two charts: accuracy against latency and against size, a colour a study, a marker a variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from petalite.compare.entries import Entry, Labelled, Measure
from petalite.compare.front import pareto_front
from petalite.report import words
from petalite.report.charts.base import Chart, magnitude
from petalite.report.fitting import legend
from petalite.report.palette import BASELINE_MARKER, MARKERS, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AXES = {
    "p50_ms": ("accuracy-latency", "latency at batch 1, ms", "latency", 1.0),
    "disk_bytes": ("accuracy-size", "on disk, MB", "size", 1e-6),
}


def comparison_charts(read: Sequence[Labelled], entries: Sequence[Entry]) -> list[Chart]:
    """One chart for each cost that some entry has together with an accuracy."""
    made = []
    for cost in _AXES:
        shown = [entry for entry in entries if entry.variant.ok and {"top1", cost} <= entry.measures.keys()]
        if shown:
            made.append(_chart(read, shown, pareto_front(entries), cost))
    return made


def _chart(read: Sequence[Labelled], shown: Sequence[Entry], front: Sequence[Entry], cost: str) -> Chart:
    file, axis, word, unit = _AXES[cost]
    names = list(dict.fromkeys(entry.variant.name for entry in shown))
    markers = dict(zip(names, (BASELINE_MARKER, *MARKERS) * (1 + len(names) // 9), strict=False))

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        colors = {one.label: theme.series[place % len(theme.series)] for place, one in enumerate(read)}
        for entry in shown:
            x, y = entry.measures[cost], entry.measures["top1"]
            color = colors[entry.label]
            axes.errorbar(
                unit * x.value, 100 * y.value, xerr=_error(x, unit), yerr=_error(y, 100), color=color,
                elinewidth=1.4, alpha=0.6,
            )  # fmt: skip
            axes.plot(
                unit * x.value, 100 * y.value, markers[entry.variant.name], color=color, markersize=10,
                markeredgecolor=theme.ink if entry in front else theme.surface, markeredgewidth=1.6, zorder=4,
            )  # fmt: skip
        log = magnitude(axes, "x", [unit * entry.measures[cost].value for entry in shown])
        if not log:
            axes.set_xlim(left=0)
        for one in read:
            axes.plot([], [], color=colors[one.label], label=words.shortened(one.label, 22), linewidth=6)
        for name in names:
            axes.plot([], [], markers[name], color=theme.muted, label=words.shortened(name, 22), markersize=7)
        axes.plot([], [], "o", color="none", markeredgecolor=theme.ink, markeredgewidth=1.6, label="on the front")
        axes.set_ylabel("top-1, % (95 % interval)")
        axes.set_xlabel(f"{axis}{', log scale' if log else ''}")
        legend(figure, axes)

    on_front = [entry.name for entry in shown if entry in front]
    stand = words.listed(on_front) if on_front else "no entry that has all three measures"
    return Chart(
        name=file,
        title=f"Accuracy against {word}",
        alt=f"Scatter of top-1 accuracy against {word} for {words.counted(len(shown), 'variant')} of "
        f"{words.counted(len(read), 'study', 'studies')}, with error bars.",
        caption=f"A colour is a study, a shape a variant. On the front of accuracy, latency and size: {stand}.",
        draw=draw,
        height=4.6,
    )


def _error(one: Measure, unit: float) -> list[list[float]]:
    return [[unit * max(one.value - one.low, 0)], [unit * max(one.high - one.value, 0)]]
