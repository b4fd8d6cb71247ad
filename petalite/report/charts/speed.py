"""How fast: images a second over the batch size, and how single latencies scatter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petalite.report import words
from petalite.report.charts.base import Chart, label, look_of, magnitude, rows_of, tapered
from petalite.report.fitting import legend
from petalite.report.inputs import Study
from petalite.report.palette import Theme
from petalite.report.variants import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Points drawn of each variant; the statistics use all of them.
DOTS = 250
_GOLDEN = 0.6180339887498949


def throughput(study: Study) -> Chart | None:
    """Lines over the batch size, or None when no variant was swept."""
    shown = [variant for variant in study.ran if variant.throughput_by_batch]
    if not shown:
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        look = look_of(study, theme)
        axes = figure.subplots()
        for place, variant in enumerate(shown):
            batches, rates = zip(*variant.throughput_by_batch, strict=True)
            axes.plot(
                batches,
                rates,
                color=look[variant.name].color,
                marker=look[variant.name].marker,
                markersize=tapered(place, len(shown), 10, 6.5),
                markeredgecolor=theme.surface,
                linewidth=tapered(place, len(shown), 3.6, 1.6),
                label=label(variant),
            )
        sizes = sorted({batch for variant in shown for batch, _ in variant.throughput_by_batch})
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xticks([], minor=True)
        log = magnitude(axes, "y", [rate for variant in shown for _, rate in variant.throughput_by_batch])
        if not log:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set_xlabel("images in a batch")
        axes.set_ylabel(f"images a second{' (log scale)' if log else ''}")
        legend(figure, axes)

    return Chart(
        name="throughput",
        title="Throughput over batch size",
        alt=f"Lines of images a second over the batch size for {words.counted(len(shown), 'variant')}.",
        caption=_throughput_caption(shown, study.baseline),
        draw=draw,
    )


def latency_spread(study: Study) -> Chart | None:
    """A dot for each timed run, with the middle half and p5–p95, or None without raw samples."""
    shown = [variant for variant in study.ran if study.samples_ms(variant)]
    if not shown:
        return None
    batch = int(shown[0].latency.get("batch_size", 1))
    samples = {variant.name: study.samples_ms(variant) for variant in shown}

    def draw(figure: Figure, theme: Theme) -> None:
        look = look_of(study, theme)
        axes = figure.subplots()
        for place, variant in zip(rows_of(axes, shown), shown, strict=True):
            color, values = look[variant.name].color, samples[variant.name]
            dots = values[:: max(1, len(values) // DOTS)]
            heights = [place + 0.14 + 0.26 * ((number * _GOLDEN) % 1) for number in range(len(dots))]
            axes.scatter(dots, heights, s=7, color=color, alpha=0.4, linewidths=0)
            p5, p25, p50, p75, p95 = (words.quantile(values, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95))
            line = place - 0.12
            axes.plot([p5, p95], [line, line], color=color, linewidth=1.6)
            axes.plot([p25, p75], [line, line], color=color, linewidth=9, solid_capstyle="butt")
            axes.plot([p50, p50], [line - 0.2, line + 0.2], color=theme.ink, linewidth=2, zorder=4)
        log = magnitude(axes, "x", [value for values in samples.values() for value in values])
        if not log:
            axes.set_xlim(left=0)
        axes.set_xlabel(f"ms at batch {batch}: median, middle half, p5–p95, runs{' (log scale)' if log else ''}")

    return Chart(
        name="latency-spread",
        title="How latencies scatter",
        alt=f"Latency of single runs of {words.counted(len(shown), 'variant')}, with median, quartiles and p5–p95.",
        caption=_spread_caption(shown, samples),
        draw=draw,
        height=max(2.1, 0.95 + 0.52 * len(shown)),
    )


def _throughput_caption(shown: list[Variant], base: Variant | None) -> str:
    def peak(variant: Variant) -> tuple[float, int]:
        return max((rate, -batch) for batch, rate in variant.throughput_by_batch)

    best = max(shown, key=peak)
    rate, batch = peak(best)
    sentence = f"{best.name} peaks highest, with {words.per_second(rate)} images/s at batch {-batch}"
    if base is None or base not in shown or len(shown) == 1:
        return f"{sentence}."
    if best is base:
        second = max((variant for variant in shown if variant is not base), key=peak)
        rate, batch = peak(second)
        return f"{sentence}: no variant is faster than the baseline, and {second.name} comes next with {words.per_second(rate)}."
    ratio = words.compared(rate, peak(base)[0], "faster", "slower", "as fast")
    joined = f"{ratio} as" if ratio == "as fast" else f"{ratio} than"
    return f"{sentence}, {joined} the best of {base.name} ({words.per_second(peak(base)[0])})."


def _spread_caption(shown: list[Variant], samples: dict[str, tuple[float, ...]]) -> str:
    medians = {name: words.quantile(values, 0.5) for name, values in samples.items()}
    widths = {name: words.quantile(values, 0.95) / medians[name] for name, values in samples.items() if medians[name]}
    widest = max(widths, key=lambda name: widths[name])
    scatter = f"one run in twenty of {widest} takes {words.times(widths[widest])} its median or longer"
    if len(shown) == 1:
        return f"The median is {words.milliseconds(medians[shown[0].name])}; {scatter}."
    fast, slow = min(medians, key=lambda name: medians[name]), max(medians, key=lambda name: medians[name])
    return (
        f"Medians run from {words.milliseconds(medians[fast])} ({fast}) to {words.milliseconds(medians[slow])} ({slow}); "
        f"{scatter}{', the widest scatter' if len(shown) > 2 else ''}."
    )
