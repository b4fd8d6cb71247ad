"""Words of a figure kept inside it, whichever font a machine has.

    legend(figure, axes)       # as few rows as fit beside each other
    fit(figure)                # labels below axes moved inside, or broken where they are longer than the figure

Matplotlib's layout makes room for numbers at an axis, not for an axis' label that is longer than the axis, nor for a
legend that is wider than the figure. With Arial ours fit; DejaVu, which matplotlib brings along, is a sixth wider.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What is left free at the edges, a part of the width.
_EDGE = 0.012


def legend(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """The labelled things in `axes`, above the plot, read in rows of at most so many."""
    handles, names = axes.get_legend_handles_labels()
    if not handles:
        return
    for most in range(min(columns, len(names)), 0, -1):
        across = -(-len(names) // -(-len(names) // most))  # as few columns as that many rows need
        order = [place for start in range(across) for place in range(start, len(names), across)]  # matplotlib goes down
        drawn = figure.legend(
            [handles[place] for place in order],
            [names[place] for place in order],
            loc="outside upper left",
            ncols=across,
            borderaxespad=0.2,
        )
        if most == 1 or drawn.get_window_extent().width <= figure.bbox.width:
            return
        drawn.remove()


def fit(figure: Figure) -> None:
    """Move the labels below the axes of a figure; a longer one than the figure goes into two lines."""
    edge = _EDGE * figure.bbox.width
    room = figure.bbox.width - 2 * edge
    for axes in figure.axes:
        label = axes.xaxis.label
        width = label.get_window_extent().width
        if width > room:
            text = label.get_text()
            label.set_text(textwrap.fill(text, int(len(text) * room / width)))
    figure.draw_without_rendering()
    for axes in figure.axes:
        label = axes.xaxis.label
        box = label.get_window_extent()
        over = max(box.x1 - figure.bbox.width + edge, 0.0) or min(box.x0 - edge, 0.0)
        label.set_x(label.get_position()[0] - over / axes.bbox.width)
