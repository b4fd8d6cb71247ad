"""A picture of sample predictions: photos with their five best classes, for `predict`.

    shown = write_gallery(rows, Path("predictions/gallery.png"))

`rows` are those of a predictions CSV: `path, target, prediction_1, score_1, …, prediction_5, score_5, error`, with an
empty `target` where the class is not known.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petalite.files import atomic
from petalite.report import words
from petalite.report.inputs import Prediction
from petalite.report.palette import LIGHT, rc
from petalite.report.photos import find, thumbnail

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

LIMIT = 24
COLUMNS = 6
PHOTO_PIXELS = 240  # the cell times DPI: drawn pixel for pixel
DPI = 120
RIGHT, WRONG, UNKNOWN = "#0b7a55", "#c0392b", "#33418e"
BAR = "#dfe6f3"

# one cell, in inches: the photo with the answers under it
_CELL, _GAP, _MARGIN, _HEAD, _ANSWERS, _FOOT = 2.0, 0.24, 0.34, 0.44, 1.06, 0.36


def write_gallery(rows: Iterable[Mapping[str, Any]], path: Path, limit: int = LIMIT, total: int | None = None) -> int:
    """Draw at most `limit` photos, evenly spaced among `rows`, as a PNG at `path`; returns how many it shows.

    total: how many there are in all, where `rows` are only some of them. Photos that cannot be read are left out; when
    none can, nothing is written and 0 is returned.
    """
    predictions = [Prediction.of(row) for row in rows]
    readable = [prediction for prediction in predictions if prediction.best is not None]
    chosen = [(item, thumbnail(find(item.path), PHOTO_PIXELS)) for item in spaced(readable, limit)]
    cells = [(prediction, image) for prediction, image in chosen if image is not None]
    if not cells:
        return 0
    _draw(cells, f"{len(cells)} of {words.counted(total or len(predictions), 'photo')}, evenly spaced", path)
    return len(cells)


def spaced(items: Sequence[Prediction], limit: int) -> list[Prediction]:
    """At most `limit` of `items`, evenly spaced and in order: a sample that nobody chose."""
    if len(items) <= limit:
        return list(items)
    return [items[(2 * number + 1) * len(items) // (2 * limit)] for number in range(limit)]


def _draw(cells: list[tuple[Prediction, Image]], note: str, path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    width = 2 * _MARGIN + columns * _CELL + (columns - 1) * _GAP
    height = 2 * _MARGIN + rows * (_HEAD + _CELL + _ANSWERS) + (rows - 1) * _GAP + _FOOT
    settings = {**rc(LIGHT), "figure.constrained_layout.use": False, "font.size": 8.5}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), dpi=DPI)
        for number, (prediction, image) in enumerate(cells):
            left = _MARGIN + (number % columns) * (_CELL + _GAP)
            top = height - _MARGIN - (number // columns) * (_HEAD + _CELL + _ANSWERS + _GAP)
            _cell(figure, prediction, image, left, top)
        figure.text(_MARGIN / width, _MARGIN / height, note, color=LIGHT.muted, va="center", fontsize=9)
        with atomic(path) as temporary:
            figure.savefig(temporary, format="png")


def _cell(figure: Figure, prediction: Prediction, image: Image, left: float, top: float) -> None:
    """One photo: the verdict above it, the five best classes below."""
    width, height = figure.get_size_inches()
    mark, color = {True: ("✓ ", RIGHT), False: ("✗ ", WRONG), None: ("", UNKNOWN)}[prediction.right]
    truth = "" if prediction.right is not False else f"is {words.shortened(prediction.target or '', 26)}"
    best = f"{mark}{words.shortened(prediction.best or '', 25)}"
    line = (top - 0.13) / height
    figure.text(left / width, line, best, color=color, fontweight="bold", fontsize=9.5, va="center")
    below = truth or words.shortened(Path(prediction.path).name, 28)
    figure.text(left / width, line - 0.17 / height, below, color=LIGHT.muted, fontsize=8, va="center")

    photo = figure.add_axes((left / width, (top - _HEAD - _CELL) / height, _CELL / width, _CELL / height))
    photo.imshow(image, interpolation="none")
    photo.set_axis_off()

    bottom = (top - _HEAD - _CELL - _ANSWERS) / height
    bars = figure.add_axes((left / width, bottom, _CELL / width, (_ANSWERS - 0.06) / height))
    bars.set_axis_off()
    bars.set(xlim=(0, 1), ylim=(4.6, -0.6))
    for place, (name, score) in enumerate(prediction.top):
        tint = color if place == 0 else "#9db2dd"
        bars.barh(place, 1, height=0.78, color="#f3f5f9")
        bars.barh(place, min(max(score or 0.0, 0.0), 1.0), height=0.78, color=tint, alpha=0.32 if place == 0 else 0.45)
        bars.text(0.025, place, words.shortened(name, 24), va="center", color=LIGHT.ink)
        bars.text(0.975, place, words.percent(score), va="center", ha="right", color=LIGHT.muted)
