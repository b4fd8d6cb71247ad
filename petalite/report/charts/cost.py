"""What a variant occupies: its size on disk beside the peak of its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petalite.report import words
from petalite.report.charts.base import Chart, look_of, no_ticks, padded, rows_of
from petalite.report.inputs import Study
from petalite.report.palette import Theme
from petalite.report.variants import Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORY_WORDS = {"device": "peak memory on the device", "rss": "peak memory of the process"}


def size_memory(study: Study) -> Chart | None:
    """Bars of both sizes, from zero, or None when neither was measured."""
    shown = [variant for variant in study.ran if variant.disk_bytes is not None or variant.peak_bytes is not None]
    if not shown:
        return None
    kinds = sorted({variant.memory_kind for variant in shown if variant.peak_bytes is not None})
    peak = MEMORY_WORDS.get(kinds[0], "peak memory") if len(kinds) == 1 else "peak memory"

    def draw(figure: Figure, theme: Theme) -> None:
        look = look_of(study, theme)
        left, right = figure.subplots(1, 2, sharey=True)
        colors = [look[variant.name].color for variant in shown]
        for axes, title, values in (
            (left, "on disk, MB", [variant.disk_bytes for variant in shown]),
            (right, "peak memory, MB", [variant.peak_bytes for variant in shown]),
        ):
            places = rows_of(axes, shown)
            bars = axes.barh(list(places), [(value or 0) / 1e6 for value in values], color=colors, height=0.62)
            numbers = [words.megabytes(value).removesuffix(f"{words.NBSP}MB") for value in values]
            axes.bar_label(bars, numbers, padding=3, color=theme.ink, fontsize=10)
            axes.set_title(title, fontsize=10, fontweight="normal", color=theme.muted)
            padded(axes, 0.32)
            no_ticks(axes)
        right.tick_params(labelleft=False)

    return Chart(
        name="size-memory",
        title="Size on disk and peak memory",
        alt=f"Bars of size on disk and of {peak} for {words.counted(len(shown), 'variant')}.",
        caption=_caption(shown, study.baseline, peak),
        draw=draw,
        height=max(1.9, 0.8 + 0.42 * len(shown)),
    )


def _caption(shown: list[Variant], base: Variant | None, peak: str) -> str:
    parts = []
    stored = [variant for variant in shown if variant.disk_bytes is not None]
    if stored:
        smallest = min(stored, key=lambda variant: variant.disk_bytes or 0.0)
        equal = [variant.name for variant in stored if variant.disk_bytes == smallest.disk_bytes]
        ratio = words.compared(smallest.disk_bytes, base.disk_bytes, "larger", "smaller") if base else ""
        than = f", {ratio} than {base.name}" if base and ratio.endswith(("larger", "smaller")) else ""
        verb = "is" if len(equal) == 1 else "are"
        parts.append(f"{words.listed(equal)} {verb} smallest on disk with {words.megabytes(smallest.disk_bytes)}{than}")
    held = [variant for variant in shown if variant.peak_bytes is not None]
    if held:
        lowest = min(held, key=lambda variant: variant.peak_bytes or 0.0)
        highest = max(held, key=lambda variant: variant.peak_bytes or 0.0)
        between = f"; {peak} runs from {words.megabytes(lowest.peak_bytes)} ({lowest.name})"
        between += f" to {words.megabytes(highest.peak_bytes)} ({highest.name})"
        parts.append(between if len(held) > 1 else f"; {peak} is {words.megabytes(lowest.peak_bytes)}")
    sentence = "".join(parts).removeprefix("; ")
    return f"{sentence[0].upper() if not stored else sentence[0]}{sentence[1:]}."
