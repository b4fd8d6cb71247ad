"""Where the time of a forward pass goes: attention, matrix products, dequantization, the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petalite.report import words
from petalite.report.charts.base import Chart, look_of, no_ticks, padded, rows_of
from petalite.report.fitting import legend
from petalite.report.inputs import Study
from petalite.report.palette import Theme, on
from petalite.report.variants import KINDS, Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND_WORDS = {
    "attention": "attention",
    "matmul": "matrix products",
    "dequantize": "dequantization",
    "other": "the rest",
}


def kernel_time(study: Study) -> Chart | None:
    """Stacked bars in milliseconds, or None when nothing was profiled."""
    shown = [variant for variant in study.ran if variant.kernel_ms]
    if not shown:
        return None
    devices = {variant.kernel_device for variant in shown}
    where = {"cuda": "GPU", "cpu": "CPU"}.get(devices.pop(), "") if len(devices) == 1 else ""

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        places = list(rows_of(axes, shown))
        starts = [0.0] * len(shown)
        longest = max(sum(variant.kernel_ms.values()) for variant in shown)
        for kind, color in zip(KINDS, theme.kinds, strict=True):
            values = [variant.kernel_ms[kind] for variant in shown]
            if any(values):
                bars = axes.barh(places, values, left=starts, color=color, height=0.62, label=KIND_WORDS[kind])
                shares = [value / sum(variant.kernel_ms.values()) for value, variant in zip(values, shown, strict=True)]
                # a share is written where its bar is wide enough for it
                wide = [
                    f"{share:.0%}" if value > 0.09 * longest else ""
                    for share, value in zip(shares, values, strict=True)
                ]
                axes.bar_label(bars, wide, label_type="center", color=on(color), fontsize=9.5)
            starts = [start + value for start, value in zip(starts, values, strict=True)]
        for place, total in zip(places, starts, strict=True):
            axes.annotate(
                words.milliseconds(total), (total, place), (4, 0), textcoords="offset points", va="center", fontsize=10
            )
        look = look_of(study, theme)
        for tick, variant in zip(axes.get_yticklabels(), shown, strict=True):
            tick.set_color(look[variant.name].color)
        padded(axes, 0.16)
        no_ticks(axes)
        axes.set_xlabel(f"{where} kernel time of one forward pass, ms, under the profiler".lstrip())
        legend(figure, axes, columns=4)

    return Chart(
        name="kernel-time",
        title="Where the time goes",
        alt=f"Stacked bars of kernel time by kind for {words.counted(len(shown), 'variant')}.",
        caption=_caption(shown),
        draw=draw,
        height=max(2.3, 1.3 + 0.42 * len(shown)),
    )


def _caption(shown: list[Variant]) -> str:
    largest = [max(KINDS, key=lambda kind, v=variant: v.kernel_ms[kind]) for variant in shown]  # type: ignore[misc]
    usual = max(KINDS, key=largest.count)
    count = largest.count(usual)
    takes = "takes" if usual in ("attention", "dequantize", "other") else "take"
    of = "its" if len(shown) == 1 else "the"
    share = _share(shown[largest.index(usual)], usual)
    if len(shown) == 1:
        return f"In {shown[0].name}, {KIND_WORDS[usual]} {takes} most of {of} time: {share}."
    sentence = f"{KIND_WORDS[usual].capitalize()} {takes} the most time in {count} of {len(shown)} variants"
    heaviest = max(shown, key=lambda variant: variant.kernel_ms["dequantize"] / sum(variant.kernel_ms.values()))
    if heaviest.kernel_ms["dequantize"] > 0:
        return f"{sentence}; dequantization takes up to {_share(heaviest, 'dequantize')} ({heaviest.name})."
    return f"{sentence}; none spends time on dequantization."


def _share(variant: Variant, kind: str) -> str:
    return words.percent(variant.kernel_ms[kind] / sum(variant.kernel_ms.values()))
