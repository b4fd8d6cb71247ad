"""No word of a figure is cut off, also with the widest font that any machine has."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from petalite.report.charts import CHARTS
from petalite.report.charts.base import WIDTH
from petalite.report.figures import DPI
from petalite.report.fitting import fit, legend
from petalite.report.inputs import read_study
from petalite.report.palette import LIGHT, rc

DEJAVU = {**rc(LIGHT), "font.sans-serif": ["DejaVu Sans"]}  # matplotlib brings it along


def cut_off(figure: Figure) -> list[str]:
    """What reaches over an edge."""
    figure.draw_without_rendering()
    parts = [*figure.legends, *figure.axes]
    boxes = {str(part): part.get_tightbbox() for part in parts}
    boxes |= {axes.get_xlabel(): axes.xaxis.label.get_window_extent() for axes in figure.axes}
    width, height = figure.bbox.size
    return [
        name
        for name, box in boxes.items()
        if box is not None and (box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1)
    ]


@pytest.mark.parametrize("make", [make for make, _ in CHARTS], ids=lambda make: make.__name__)
@pytest.mark.parametrize("which", ["study", "rough"])
def test_no_words_are_cut_off(make: object, which: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(which)
    chart = make(read_study(folder))  # type: ignore[operator]
    if chart is None:
        pytest.skip(f"nothing to draw in the {which}")
    with matplotlib.rc_context(DEJAVU):
        figure = Figure(figsize=(WIDTH, chart.height), dpi=DPI)
        chart.draw(figure, LIGHT)
        fit(figure)
        assert cut_off(figure) == []


def test_a_label_longer_than_the_figure_goes_into_two_lines() -> None:
    with matplotlib.rc_context(DEJAVU):
        figure = Figure(figsize=(WIDTH, 3.0), dpi=DPI)
        axes = figure.subplots()
        axes.set_xlabel("milliseconds of a pass over a batch, measured in rounds in which all variants take turns")
        assert cut_off(figure)
        fit(figure)
        assert cut_off(figure) == [] and axes.get_xlabel().count("\n") == 1


def test_a_legend_has_as_many_columns_as_fit() -> None:
    with matplotlib.rc_context(DEJAVU):
        for length, columns in ((4, 4), (14, 2), (40, 1)):
            figure = Figure(figsize=(WIDTH, 3.0), dpi=DPI)
            axes = figure.subplots()
            for number in range(4):
                axes.plot([], [], label=f"{number}" * length)
            legend(figure, axes, columns=4)
            (drawn,) = figure.legends
            assert drawn._ncols == columns
            texts = [text.get_text()[0] for text in drawn.get_texts()]
            down = [str(number) for start in range(columns) for number in range(start, 4, columns)]
            assert texts == down  # matplotlib goes down, so that rows read in order
