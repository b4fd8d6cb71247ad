"""The study's charts as PNG files, each on a light and on a dark surface.

    pictures, missing = draw_figures(study, Path("runs/flowers/report/figures"))
    pictures[0].light                 # …/accuracy-latency.png; .dark is …/accuracy-latency-dark.png

Drawn without pyplot, so that nothing is shared between two reports that are written at the same time.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petalite.files import atomic
from petalite.report.charts import CHARTS, Chart
from petalite.report.charts.ablation import ablation_charts
from petalite.report.charts.base import WIDTH
from petalite.report.charts.search import search_charts
from petalite.report.fitting import fit
from petalite.report.inputs import Study
from petalite.report.palette import DARK, LIGHT, Theme, rc

DPI = 200
#: A chart has few colours; a palette of this many makes its file four times smaller, with no visible difference.
COLORS = 128


@dataclass(frozen=True)
class Picture:
    """A chart that was drawn: its words, its two files, and its size in pixels."""

    name: str
    title: str
    alt: str
    caption: str
    light: Path
    dark: Path
    size: tuple[int, int]


def draw_figures(study: Study, folder: Path) -> tuple[list[Picture], list[str]]:
    """Draw every chart that the study has data for into `folder`; returns the pictures, and in words what is missing."""
    pictures, missing = [], []
    for make, absent in CHARTS:
        chart = make(study)
        if chart is None:
            missing.append(absent)
            continue
        pictures.append(_picture(chart, folder))
    return pictures, missing


def draw_charts(charts: Iterable[Chart], folder: Path) -> list[Picture]:
    """Draw each chart into `folder`, in both themes."""
    return [_picture(chart, folder) for chart in charts]


def draw_ablation(document: Mapping[str, Any], folder: Path) -> list[Picture]:
    """Draw the charts of what `ablate` found (the contents of ablation.json) into `folder`."""
    return draw_charts(ablation_charts(document), folder)


def draw_search(document: Mapping[str, Any], folder: Path) -> list[Picture]:
    """Draw the charts of what `search` found (the contents of search.json) into `folder`."""
    return draw_charts(search_charts(document), folder)


def _picture(chart: Chart, folder: Path) -> Picture:
    light, dark = folder / f"{chart.name}.png", folder / f"{chart.name}-dark.png"
    size = _draw(chart, LIGHT, light)
    _draw(chart, DARK, dark)
    return Picture(chart.name, chart.title, chart.alt, chart.caption, light, dark, size)


def _draw(chart: Chart, theme: Theme, path: Path) -> tuple[int, int]:
    import matplotlib
    from matplotlib.figure import Figure
    from PIL import Image

    buffer = io.BytesIO()
    with matplotlib.rc_context(rc(theme)), warnings.catch_warnings():
        # a variant may be named in a script that the fonts at hand lack: an empty box is no reason to fail
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH, chart.height), dpi=DPI)
        chart.draw(figure, theme)
        fit(figure)
        figure.savefig(buffer, format="png", dpi=DPI)
    with Image.open(buffer) as image, atomic(path) as temporary:
        reduced = image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
        reduced.save(temporary, format="PNG", optimize=True)
        return reduced.size
