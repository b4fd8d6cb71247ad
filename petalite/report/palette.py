"""Colours that stay with a variant through every figure and the page, in light and in dark.

    look = looks(["fp32", "nf4-fa2"], "fp32", LIGHT)
    look["nf4-fa2"].color, look["nf4-fa2"].marker

The colours keep a contrast of 3:1 to their surface and stay apart under simulated protanopia, deuteranopia and
tritanopia (the tests measure it); each comes with a marker of its own, so that no figure depends on colour alone. The
baseline is always the neutral one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Theme:
    """The colours of a page and its figures. `kinds` are the parts of a forward pass, in KINDS' order."""

    name: str
    surface: str
    ink: str
    muted: str
    grid: str
    baseline: str
    series: tuple[str, ...]
    kinds: tuple[str, str, str, str]


@dataclass(frozen=True)
class Look:
    """How a variant is drawn."""

    color: str
    marker: str


LIGHT = Theme(
    name="light",
    surface="#ffffff",
    ink="#20262e",
    muted="#5b6470",
    grid="#e3e6ea",
    baseline="#4a525c",
    series=("#d1550f", "#1f6fc4", "#0b8a66", "#b0479f", "#9412ee", "#791d06", "#6f9a53", "#3d0a94"),
    kinds=("#33418e", "#3f8fb8", "#e0a130", "#a9b1bb"),
)
DARK = Theme(
    name="dark",
    surface="#1b1f26",
    ink="#e8ebef",
    muted="#a3acb8",
    grid="#343b45",
    baseline="#c3cad3",
    series=("#f28b4b", "#6cabf5", "#3fc79e", "#dd8fd2", "#9a55ff", "#8f764f", "#baff8c", "#ffdb4d"),
    kinds=("#8c9cf0", "#4fa9cc", "#e8b04a", "#6b7480"),
)
THEMES = (LIGHT, DARK)
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">")
BASELINE_MARKER = "o"
#: The same shapes as SVG paths in a square of 12, for the page.
SHAPES = {
    "o": "M6 1a5 5 0 1 0 .01 0z",
    "s": "M1.5 1.5h9v9h-9z",
    "^": "M6 1l5.5 10h-11z",
    "D": "M6 .5L11.5 6 6 11.5.5 6z",
    "v": "M6 11L.5 1h11z",
    "P": "M4 .5h4V4h3.5v4H8v3.5H4V8H.5V4H4z",
    "X": "M3.2.6L6 3.4 8.8.6l2.6 2.6L8.6 6l2.8 2.8-2.6 2.6L6 8.6l-2.8 2.8L.6 8.8 3.4 6 .6 3.2z",
    "<": "M1 6L11 .5v11z",
    ">": "M11 6L1 .5v11z",
}


def looks(names: Sequence[str], baseline: str, theme: Theme) -> dict[str, Look]:
    """A look for each variant, by its place among `names`; after eight the colours start again with other markers."""
    others = [name for name in names if name != baseline]
    count = len(theme.series)
    found = {
        name: Look(theme.series[place % count], MARKERS[(place + place // count) % len(MARKERS)])
        for place, name in enumerate(others)
    }
    return {**found, baseline: Look(theme.baseline, BASELINE_MARKER)}


def on(color: str) -> str:
    """Black or white, whichever reads better on `color` (`#rrggbb`), by relative luminance (WCAG 2.1)."""
    parts = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#ffffff"


def rc(theme: Theme) -> Any:  # what matplotlib calls the type of its settings changes between its versions
    """Matplotlib settings of a theme. Text is never parsed as mathematics: a class may be called "$5_a$"."""
    return {
        "font.family": ["sans-serif", "DejaVu Sans"],
        "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
        "font.size": 11.5,
        "text.parse_math": False,
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": theme.surface,
        "figure.facecolor": theme.surface,
        "savefig.facecolor": theme.surface,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.labelsize": 11,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "legend.frameon": False,
        "legend.fontsize": 11,
        "legend.handlelength": 1.4,
        "legend.columnspacing": 1.2,
        "axes.unicode_minus": True,
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.h_pad": 0.06,
        "figure.constrained_layout.w_pad": 0.06,
    }
