"""Three pictures of a profile: time by layer, rates under the roof, memory over time.

draw_pictures(found, Path("runs/profile"))       # layers.png, roofline.png, memory.png
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petalite.files import atomic
from petalite.profiling.steps import GAPS, KINDS, NO_LAYER, WORDS
from petalite.report.palette import LIGHT, rc

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 160
#: In KINDS' order, and the gaps.
_COLORS = ("#3f8fb8", "#33418e", "#4f7c8a", "#e0a130", "#0b8a66", "#b0479f", "#d1550f", "#6f9a53", "#a9b1bb", "#e3e6ea")
#: Of the longest bar: what a shorter one that is no block's would not be seen of.
_VISIBLE = 0.005
#: Bars whose names find room beside each other.
_MOST_LEVEL = 9
#: Of groups of layers; the whole pass is a circle. All have an outline.
_SHAPES = ("s", "^", "D", "v", "P", "X", "<", ">")
_LEGEND_SIZE = 60
_BLOCK = re.compile(r"^blocks\.(\d+)")


def draw_pictures(found: dict[str, Any], out: Path) -> list[Path]:
    """Write what there is to draw; the paths."""
    drawn: list[tuple[str, Callable[[Figure, dict[str, Any]], None]]] = [("memory", _memory)]
    if found["anatomy"]["layers"]:
        drawn.append(("layers", _layers))
    if "reason" not in found["roofline"]:
        drawn.append(("roofline", _roofline))
    return [_write(out / f"{name}.png", found, draw) for name, draw in drawn]


def _write(path: Path, found: dict[str, Any], draw: Callable[[Figure, dict[str, Any]], None]) -> Path:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(rc(LIGHT)), warnings.catch_warnings(), atomic(path) as temporary:
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(8.4, 4.8), dpi=_DPI)
        draw(figure, found)
        figure.savefig(temporary, format="png", dpi=_DPI)
    return path


def _title(found: dict[str, Any]) -> str:
    info = found["info"]
    return f"{info['architecture']}, {info['format']}, batch {found['batch_size']}, {info['engine']} {info['compute']}"


def _layers(figure: Figure, found: dict[str, Any]) -> None:
    """A bar for each block, and for what lies before and behind them, by kind; the gaps as a bar of their own."""
    axes = figure.subplots()
    bars: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for entry in found["anatomy"]["layers"]:
        block = _BLOCK.match(entry["layer"] or "")
        first = (entry["layer"] or NO_LAYER).split(".")[0]
        for kind, ms in entry["kinds"].items():
            bars[block[1] if block else first][kind] += ms
    numbers = sorted((name for name in bars if name.isdigit()), key=int)
    before = [name for name in bars if name.startswith("patch") or name == "norm_pre"]
    visible_ms = _VISIBLE * max(sum(kinds.values()) for kinds in bars.values())
    behind = [name for name in bars if name not in (*numbers, *before) and sum(bars[name].values()) > visible_ms]
    names = [*before, *numbers, *behind]
    gaps_ms = found["anatomy"]["kinds"][-1]["ms"]
    starts = [0.0] * len(names)
    for kind, color in zip(KINDS, _COLORS, strict=False):
        values = [bars[name].get(kind, 0.0) for name in names]
        if any(values):
            axes.bar(range(len(names)), values, bottom=starts, color=color, label=WORDS[kind], width=0.72)
            starts = [start + value for start, value in zip(starts, values, strict=True)]
    axes.bar([len(names)], [gaps_ms], color=_COLORS[-1], label=WORDS[GAPS], width=0.72)
    axes.set_xticks(range(len(names) + 1), [name.replace("_", "\n") for name in (*names, "gaps")], fontsize=9.5)
    for label in axes.get_xticklabels() if len(names) > _MOST_LEVEL else ():
        label.set_rotation(0 if label.get_text().isdigit() else 90)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("ms of one pass")
    axes.set_title(f"Time by block: {_title(found)}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9.5)


def _roofline(figure: Figure, found: dict[str, Any]) -> None:
    """Operations a second over operations a byte, both logarithmic, under the two measured ceilings."""
    from matplotlib.collections import PathCollection
    from matplotlib.colors import to_rgba
    from matplotlib.ticker import LogLocator

    roof = found["roofline"]
    ceilings, groups = roof["ceilings"], roof["groups"]
    peak, slope = ceilings["tflops"], ceilings["copy_gb_s"] / 1e3
    axes = figure.subplots()
    points = [*groups, {"group": "whole pass", **roof["total"]}]
    corner = peak / slope
    left = min([corner / 4, *(one["intensity"] / 2 for one in points)])
    right = max([corner * 4, *(one["intensity"] * 2 for one in points)])
    axes.plot([left, corner, right], [left * slope, peak, peak], color=LIGHT.ink, linewidth=1.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda *_: "")
    axes.annotate(f"{peak:.3g} TFLOP/s, {ceilings['tflops_of']}", (right, peak), (0, 5), textcoords="offset points",
                  ha="right", fontsize=9.5)  # fmt: skip
    middle = (left * corner) ** 0.5
    axes.annotate(f"{ceilings['copy_gb_s']:.3g} GB/s, copying", (middle, middle * slope), (-8, 4),
                  textcoords="offset points", ha="right", fontsize=9.5)  # fmt: skip
    longest = max(one["ms"] for one in points)
    for place, one in enumerate(points):
        # points lie close together and on each other: the outline of each stays visible
        whole = place == len(points) - 1
        color = LIGHT.ink if whole else LIGHT.series[place % len(LIGHT.series)]
        filled = "none" if whole else to_rgba(color, 0.3)
        marker = "o" if whole else _SHAPES[(place + place // len(_SHAPES)) % len(_SHAPES)]
        axes.scatter(
            one["intensity"], one["tflops"], s=30 + 170 * one["ms"] / longest, marker=marker, facecolors=filled,
            edgecolors=color, linewidths=1.4, zorder=3,
            label=f"{one['group']}: {one['ms']:.3g} ms, {one['share_of_roof']:.0%}",
        )  # fmt: skip
    axes.set_xlabel("operations a byte that has to move")
    axes.set_ylabel(f"TFLOP/s ({ceilings['precision']})")
    axes.set_title(f"Under the roof: {_title(found)}")
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9.5, title="area: time\n%: share of what the roof allows",
        title_fontsize=9.5, alignment="left",
    )  # fmt: skip
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([_LEGEND_SIZE])


def _memory(figure: Figure, found: dict[str, Any]) -> None:
    """The curve, with what ended when."""
    axes: Axes = figure.subplots()
    curve = found["memory"]
    times = [moment for moment, _ in curve["points"]]
    held = [taken / 1e6 for _, taken in curve["points"]]
    axes.fill_between(times, held, color=LIGHT.series[1], alpha=0.18)
    axes.plot(times, held, color=LIGHT.series[1], linewidth=1.6)
    top = 1.12 * max(held, default=1.0)
    axes.set_ylim(0, top)
    for place, (name, moment) in enumerate(curve["marks"]):
        axes.axvline(moment, color=LIGHT.muted, linewidth=0.8, linestyle=":")
        # moments may be close together: a name covers the lines of the others
        box = {"facecolor": LIGHT.surface, "edgecolor": "none", "pad": 1.5}
        axes.annotate(name, (moment, top * (0.04 + 0.06 * place)), (-4, 0), textcoords="offset points", fontsize=9.5,
                      color=LIGHT.muted, ha="right", bbox=box)  # fmt: skip
    axes.set_xlabel("seconds since the start of loading")
    what = "MB of the device, by PyTorch's allocator" if curve["kind"] == "device" else "MB resident, the whole process"
    axes.set_ylabel(what)
    axes.set_title(f"Memory: {_title(found)}")
