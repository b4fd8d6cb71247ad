"""How the training went: losses, and top-1 on the validation images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from petalite.report import words
from petalite.report.charts.base import Chart
from petalite.report.inputs import Study
from petalite.report.palette import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = list[tuple[float, float]]


def training(study: Study) -> Chart | None:
    """Curves over the epochs (over the steps when there are several rows an epoch), or None without metrics."""
    epochs = [row["epoch"] for row in study.metrics if "epoch" in row]
    along = "epoch" if epochs and len(set(epochs)) == len(epochs) else "step"
    train, valid, top1 = (_curve(study, along, key) for key in ("train_loss", "valid_loss", "valid_top1"))
    if not (train or valid or top1):
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        wanted = [bool(train or valid), bool(top1)]
        panels = list(figure.subplots(1, sum(wanted), squeeze=False)[0])
        if wanted[0]:
            axes: Axes = panels.pop(0)
            _line(axes, train, theme.kinds[0], "s", "training", theme)
            _line(axes, valid, theme.kinds[2], "o", "validation", theme)
            axes.set_title("loss", color=theme.muted, fontweight="normal")
            axes.set_ylim(bottom=0)
            axes.legend()
            _along(axes, along)
        if wanted[1]:
            axes = panels.pop(0)
            _line(axes, [(x, 100 * y) for x, y in top1], theme.kinds[2], "o", "", theme)
            axes.set_title("validation top-1, %", color=theme.muted, fontweight="normal")
            _along(axes, along)

    return Chart(
        name="training",
        title="Training",
        alt=f"Curves of training loss, validation loss and validation top-1 over the {along}s.",
        caption=_caption(top1, train or valid, along),
        draw=draw,
        height=2.9,
    )


def _curve(study: Study, along: str, key: str) -> Curve:
    return [(row[along], row[key]) for row in study.metrics if along in row and key in row]


def _line(axes: Axes, curve: Curve, color: str, marker: str, name: str, theme: Theme) -> None:
    if not curve:
        return
    xs, ys = zip(*curve, strict=True)
    marks = marker if len(curve) <= 30 else "none"
    axes.plot(xs, ys, color=color, marker=marks, markersize=6, markeredgecolor=theme.surface, linewidth=2, label=name)


def _along(axes: Axes, along: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel(along)


def _caption(top1: Curve, loss: Curve, along: str) -> str:
    if not top1:
        return f"The loss went from {loss[0][1]:.3f} to {loss[-1][1]:.3f} by {along} {loss[-1][0]:g}."
    at, best = max(top1, key=lambda point: point[1])
    if len(top1) == 1:
        return f"Validation top-1 is {words.percent(best)} at {along} {at:g}."
    verb = "rose" if top1[-1][1] > top1[0][1] else "fell" if top1[-1][1] < top1[0][1] else "stayed"
    course = f"{verb} from {words.percent(top1[0][1])} to {words.percent(top1[-1][1])}"
    course = f"began and ended at {words.percent(best)}" if verb == "stayed" else course
    return (
        f"Validation top-1 {course} by {along} {top1[-1][0]:g}; the best, {words.percent(best)}, was at {along} {at:g}."
    )
