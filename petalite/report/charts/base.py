"""What a chart is, and the few drawing habits that all of them share.

    chart = throughput(study)                # None when the study has nothing to draw
    chart.caption                            # one sentence, computed from the data
    chart.draw(figure, LIGHT)                # draws on an empty matplotlib Figure

A chart is drawn twice, on a light and on a dark surface, so it is a function of the theme and holds no picture itself.
Sizes are chosen for a phone: at 360 px across, 11 pt text is still about 10 px high.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from petalite.report import words
from petalite.report.inputs import Study
from petalite.report.palette import Look, Theme, looks
from petalite.report.variants import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.4  # inches; at 11 pt this reads on a phone and fills half a desk's width
NAME_LENGTH = 18
#: An axis turns logarithmic when its largest value is this many times its smallest.
LOG_FROM = 6


@dataclass(frozen=True)
class Chart:
    """One figure: what it is called, what it says, and how to draw it."""

    name: str  # its file's name
    title: str
    alt: str  # for those who cannot see it: the kind of figure and what is on its axes
    caption: str
    draw: Callable[[Figure, Theme], None]
    height: float = 3.7  # inches


def look_of(study: Study, theme: Theme) -> dict[str, Look]:
    """Each variant's colour and marker, the failed ones counted too: a rerun in which they work changes no colour."""
    return looks([variant.name for variant in study.variants], str(study.results.get("baseline")), theme)


def label(variant: Variant) -> str:
    """A name that fits beside an axis."""
    return words.shortened(variant.name, NAME_LENGTH)


def rows_of(axes: Axes, variants: Sequence[Variant]) -> range:
    """Give each variant a row, the first on top, its name at the left; returns the rows' positions."""
    places = range(len(variants))
    axes.set_yticks(list(places), [label(variant) for variant in variants])
    axes.set_ylim(len(variants) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    return places


def tapered(place: int, count: int, first: float, last: float) -> float:
    """A size that shrinks from the first to the last of `count` things, so that equal ones show under each other."""
    return first if count == 1 else first + (last - first) * place / (count - 1)


def magnitude(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> bool:
    """A logarithmic axis with plain numbers where `values` span a lot; returns whether it is one now."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) / min(positive) < LOG_FROM:
        return False
    from matplotlib.ticker import LogLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    if which == "x":
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    decades = max(positive) / min(positive) > 300
    axis.set_major_locator(LogLocator(subs=(1.0,) if decades else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_formatter(lambda *_: "")
    return True


def padded(axes: Axes, room: float = 0.3) -> None:
    """Room at the right end of bars for the numbers written there; bars start at zero."""
    axes.set_xlim(0, axes.get_xlim()[1] * (1 + room))


def no_ticks(axes: Axes) -> None:
    """No numbers along x: they stand at the bars."""
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
