"""The plans that a search tried: what each costs and what it loses, the front among them, and the one chosen.

search_charts(document)[0].name      # 'search-front'; document: search.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from petalite.report.charts.base import Chart
from petalite.report.fitting import legend
from petalite.report.palette import Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]


def front(rows: Sequence[Row], cost: str) -> list[Row]:
    """The tries that no other beats in both cost and drop, the cheapest first."""

    def beats(one: Row, other: Row) -> bool:
        a, b = (one[cost], one["drop_points"]), (other[cost], other["drop_points"])
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    return sorted((row for row in rows if not any(beats(other, row) for other in rows)), key=lambda row: row[cost])


def search_charts(document: Row) -> list[Chart]:
    """The Pareto front of what `search` found; no chart when nothing was tried."""
    rows, chosen = document["tries"], document["chosen"]
    if not rows:
        return []
    cost = "disk_bytes" if document["objective"] == "size" else "estimated_ms"
    unit, scale = ("MB on disk", 1e-6) if cost == "disk_bytes" else ("ms a pass, estimated", 1.0)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        best = front(rows, cost)
        axes.step(
            [row[cost] * scale for row in best], [row["drop_points"] for row in best], where="post",
            color=theme.baseline, linewidth=1.2, zorder=1, label="Pareto front",
        )  # fmt: skip
        for accepted, name in ((True, "within the budget"), (False, "over it")):
            some = [row for row in rows if row["accepted"] == accepted]
            if some:
                values = [row["drop_points"] for row in some]
                axes.errorbar(
                    [row[cost] * scale for row in some], values,
                    yerr=[[v - row["drop_ci95_low"] for v, row in zip(values, some, strict=True)],
                          [row["drop_ci95_high"] - v for v, row in zip(values, some, strict=True)]],
                    fmt="o", color=theme.ink if accepted else theme.muted, markersize=7, elinewidth=1.2, zorder=3,
                    markerfacecolor=theme.ink if accepted else theme.surface, label=name,
                )  # fmt: skip
        if chosen:
            axes.plot(
                chosen[cost] * scale, chosen["drop_points"], "o", markersize=15, markerfacecolor="none",
                markeredgecolor=theme.ink, markeredgewidth=1.6, linestyle="none", zorder=4, label="chosen",
            )  # fmt: skip
        axes.set_xlabel(unit)
        axes.set_ylabel("points of top-1 lost")
        legend(figure, axes, columns=2)

    return [
        Chart(
            name="search-front",
            title="The plans that were tried",
            alt=f"Scatter of points of top-1 lost over {unit}, with 95 % intervals, for every plan that was tried.",
            caption=_caption(document),
            draw=draw,
            height=4.0,
        )
    ]


def _caption(document: Row) -> str:
    rows, chosen = document["tries"], document["chosen"]
    text = f"{len(rows)} plans built and measured on the validation images, with 95 % intervals."
    if chosen:
        text += f" Chosen: {chosen['name']}, {chosen['ratio']:.2f}x smaller, {chosen['drop_points']:+.2f} points lost."
    else:
        text += " None keeps the budget."
    return text
