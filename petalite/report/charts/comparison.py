"""All the measures side by side: how many times better or worse than the baseline, and the points of top-1 gained or lost.

Ratios stand on a logarithmic axis, where twice as good and half as good are equally far from 1×. Accuracy gets an axis
of its own in points: as a ratio, a loss that matters would look like nothing. (A radar chart would show areas that
depend on the order of its spokes.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from petalite.report import words
from petalite.report.charts.base import Chart, label, look_of
from petalite.report.fitting import legend
from petalite.report.inputs import Study
from petalite.report.palette import Theme
from petalite.report.variants import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _inverse(value: Callable[[Variant], float | None]) -> Callable[[Variant], float | None]:
    def turned(variant: Variant) -> float | None:
        found = value(variant)
        return 1 / found if found else None

    return turned


#: What is compared; for each, a number of which more is better.
MEASURES: tuple[tuple[str, Callable[[Variant], float | None]], ...] = (
    ("smaller on disk", _inverse(lambda variant: variant.disk_bytes)),
    ("less peak memory", _inverse(lambda variant: variant.peak_bytes)),
    ("lower latency", _inverse(lambda variant: variant.p50_ms)),
    ("more images/s", lambda variant: variant.images_per_s),
)


def gains(variant: Variant, base: Variant) -> dict[str, float]:
    """How many times better than the baseline `variant` is, by measure: 2.0 is twice as good, 0.5 half as good."""
    pairs = {name: (value(variant), value(base)) for name, value in MEASURES}
    return {name: mine / reference for name, (mine, reference) in pairs.items() if mine and reference}


def comparison(study: Study) -> Chart | None:
    """The dot plot, or None without a baseline and something to compare with it."""
    base = study.baseline
    if base is None:
        return None
    found = [(variant, gains(variant, base)) for variant in study.ran if variant is not base]
    found = [(variant, ratios) for variant, ratios in found if ratios]
    if not found:
        return None
    shown = [name for name, _ in MEASURES if any(name in ratios for _, ratios in found)]
    judged = [variant for variant, _ in found if variant.drop is not None]
    reference = base.name

    def draw(figure: Figure, theme: Theme) -> None:
        if judged:
            top, bottom = figure.subplots(2, 1, height_ratios=[len(shown), 1.25])
            _accuracy(bottom, study, judged, theme)
        else:
            top = figure.subplots()
        look = look_of(study, theme)
        axes: Axes = top
        for place, (variant, ratios) in enumerate(found):
            offset = _dodge(place, len(found))
            known = [row for row, name in enumerate(shown) if name in ratios]
            axes.plot(
                [ratios[shown[row]] for row in known],
                [row + offset for row in known],
                look[variant.name].marker,
                color=look[variant.name].color,
                markersize=8.5,
                markeredgecolor=theme.surface,
                label=label(variant),
                linestyle="none",
                zorder=3,
            )
        for row in range(1, len(shown)):
            axes.axhline(row - 0.5, color=theme.grid, linewidth=0.8)
        axes.axvline(1, color=theme.baseline, linewidth=1.6, zorder=2)
        _ratio_axis(axes, [ratio for _, ratios in found for ratio in ratios.values()])
        axes.set_yticks(range(len(shown)), shown)
        axes.set_ylim(len(shown) - 0.45, -0.55)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"times better than {words.shortened(reference, 24)} (log scale): right of 1× is better")
        legend(figure, axes)

    return Chart(
        name="comparison",
        title=f"Everything at once, against {reference}",
        alt=f"Dot plot of {words.listed(shown)} as ratios to {reference}, and the change of top-1 in points.",
        caption=_caption(found, reference, len(shown)),
        draw=draw,
        height=3.1 + 0.12 * len(found) + (0.9 if judged else 0),
    )


def _accuracy(axes: Axes, study: Study, judged: list[Variant], theme: Theme) -> None:
    """The change of top-1 in points, with its interval and the budget."""
    look = look_of(study, theme)
    for place, variant in enumerate(judged):
        drop = variant.drop or 0.0
        low, high = variant.drop_ci or (drop, drop)
        row = _dodge(place, len(judged))
        axes.errorbar(
            -drop,
            row,
            xerr=[[max(high - drop, 0)], [max(drop - low, 0)]],
            fmt=look[variant.name].marker,
            color=look[variant.name].color,
            markersize=8.5,
            markeredgecolor=theme.surface,
            elinewidth=1.6,
            zorder=3,
        )
    axes.axvline(0, color=theme.baseline, linewidth=1.6, zorder=2)
    about = "points of top-1 gained (95 % interval)"
    if study.budget is not None:
        axes.axvline(-study.budget, color=theme.muted, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        about = f"points of top-1 gained (95 % interval); dashed: budget, −{words.plain(study.budget)}"
    axes.set_yticks([0], ["accuracy"])
    axes.set_ylim(0.6, -0.6)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(about)


def _dodge(place: int, count: int) -> float:
    """Where the `place`-th of `count` marks stands within its row, so that equal ones do not cover each other."""
    return 0.0 if count == 1 else (place / (count - 1) - 0.5) * 0.62


def _ratio_axis(axes: Axes, ratios: list[float]) -> None:
    from math import ceil, floor, log2

    low, high = floor(log2(min([1, *ratios])) - 0.15), ceil(log2(max([1, *ratios])) + 0.15)
    step = 1 if high - low <= 8 else 2
    axes.set_xscale("log", base=2)
    axes.set_xlim(2**low, 2**high)
    ticks = [2.0**exponent for exponent in range(low, high + 1, step)]
    axes.set_xticks(ticks, [f"{tick:g}×" if tick >= 0.1 else f"1/{1 / tick:g}×" for tick in ticks])


def _caption(found: list[tuple[Variant, dict[str, float]]], reference: str, measures: int) -> str:
    every = [variant.name for variant, ratios in found if len(ratios) == measures and min(ratios.values()) > 1]
    if every:
        verb = "is" if len(every) == 1 else "are"
        return (
            f"{words.listed(every)} {verb} better than {reference} on all {words.counted(measures, 'measure')} of cost."
        )
    best, ratios = max(found, key=lambda item: sum(ratio > 1 for ratio in item[1].values()))
    good = [name for name, ratio in ratios.items() if ratio > 1]
    bad = [f"{name} ({words.times(ratio)})" for name, ratio in ratios.items() if ratio <= 1]
    if not good:
        return f"No variant is better than {reference} on any of the {words.counted(measures, 'measure')} of cost."
    won = words.listed(f"{name} ({words.times(ratios[name])})" for name in good)
    return f"No variant beats {reference} throughout: {best.name} gives {won}, but not {words.listed(bad)}."
