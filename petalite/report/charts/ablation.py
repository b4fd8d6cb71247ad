"""Layer ablation: what keeping or quantizing one block changes, beside what the reference study found.

    [chart.name for chart in ablation_charts(document)]      # document: ablation.json

Marks are filled where a difference is real after Holm's correction, hollow where it may be chance. The reference study
gave no intervals, and its ViT-L has 24 blocks: its numbers stand in a place of their own, not at our blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from petalite.ablation.compare import best_block, real
from petalite.report import words
from petalite.report.charts.base import Chart
from petalite.report.fitting import legend
from petalite.report.palette import Look, Theme, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Found = Mapping[str, Any]
REFERENCE_BLOCKS = 24
#: The reference study's top-1 in percent: its parent, everything quantized, first and last kept, single blocks kept.
REFERENCE_PARENT = 90.6
REFERENCE: Mapping[str, tuple[float, float, Mapping[int, float]]] = {
    "nf4": (88.63, 88.51, {21: 89.61, 22: 89.0, 23: 88.9}),
    "int8": (90.10, 90.10, {23: 90.46}),
}


def ablation_charts(document: Found) -> list[Chart]:
    """The charts of what `ablate` found: each block kept, first and last, and each block alone where that was tried."""
    formats = document["formats"]
    alone = all(_of_kind(found, "all_but") for found in formats)
    return [_kept(document), _first_last(document), *([_alone(document)] if alone else [])]


def _kept(document: Found) -> Chart:
    formats, blocks = document["formats"], int(document["blocks"])
    known = [found for found in formats if found["format"] in REFERENCE]

    def draw(figure: Figure, theme: Theme) -> None:
        look = _looks(formats, theme)
        grid = figure.subplots(2, 2 if known else 1, squeeze=False, **_shape(bool(known), blocks))
        _blocks(grid[0][0], grid[1][0], formats, "block", look, theme)
        grid[0][0].set_ylabel("points of top-1")
        grid[1][0].set_ylabel("% of the KL removed")
        grid[1][0].set_xlabel("the block kept in 16 bits")
        if known:
            _reference(grid[0][1], known, look, theme)
            grid[1][1].axis("off")
        legend(figure, grid[0][0])

    return Chart(
        name="ablation-blocks",
        title="What keeping one block gains",
        alt="Two dot plots over the blocks: points of top-1 gained by keeping one, and the share of KL removed.",
        caption=_kept_caption(formats, blocks, bool(known)),
        draw=draw,
        height=5.2,
    )


def _first_last(document: Found) -> Chart:
    formats = document["formats"]
    named = any(found["format"] in REFERENCE for found in formats)

    def draw(figure: Figure, theme: Theme) -> None:
        axes: Axes = figure.subplots()
        look = _looks(formats, theme)
        labels: list[str] = []
        for found in formats:
            mine = look[found["format"]]
            theirs = _reference_rows(found["format"])
            for place, (name, row) in enumerate(_first_last_rows(found)):
                y = len(labels)
                low, high = row["delta_ci95"]
                value = row["top1_delta"]
                axes.errorbar(
                    value, y, xerr=[[value - low], [high - value]], fmt=mine.marker, color=mine.color, markersize=8,
                    elinewidth=1.6, zorder=3, label="here, 95 % interval" if not labels else None,
                )  # fmt: skip
                if theirs:
                    axes.plot(
                        theirs[place], y, "*", color=theme.ink, markersize=10, linestyle="none", zorder=4,
                        label="reference study, ViT-L/16" if not place and found["format"] == next(iter(_known(formats))) else None,
                    )  # fmt: skip
                labels.append(f"{found['format']}: {name}" if not place else name)
            axes.axhline(len(labels) - 0.5, color=theme.grid, linewidth=0.8)
        axes.axvline(0, color=theme.baseline, linewidth=1.6, zorder=2)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"points of top-1 against {document['parent']['format'].upper()}")
        legend(figure, axes, columns=2)

    return Chart(
        name="ablation-first-last",
        title="First and last block kept, or the best single one",
        alt="Dot plot of the change of top-1 with all quantized, first and last block kept, and the best block kept.",
        caption=_first_last_caption(formats, named, int(document["blocks"])),
        draw=draw,
        height=1.7 + 0.95 * len(formats),
    )


def _alone(document: Found) -> Chart:
    formats = document["formats"]

    def draw(figure: Figure, theme: Theme) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True)
        _blocks(top, bottom, formats, "all_but", _looks(formats, theme), theme)
        top.set_ylabel("points of top-1")
        bottom.set_ylabel("% of the KL")
        bottom.set_xlabel("the only block that is quantized")
        legend(figure, top)

    shares = []
    for found in formats:
        rows, ceiling = _of_kind(found, "all_but"), found["unquantized"]["kl_divergence"]
        lost = found["rows"][0]["kl_divergence"] - ceiling
        together = sum(row["kl_divergence"] - ceiling for row in rows)
        worst = max(rows, key=lambda row: row["kl_divergence"])
        share = f", all added up {100 * together / lost:.0f} % of what quantizing everything costs" if lost > 0 else ""
        shares.append(f"{found['format']}: {worst['kept'].partition(':')[2]} costs the most{share}")
    return Chart(
        name="ablation-alone",
        title="What quantizing one block alone costs",
        alt="Two dot plots over the blocks: points of top-1 and KL that quantizing that block alone costs.",
        caption=f"Everything else stays in 16 bits; {'; '.join(shares)}. Filled where real after Holm's correction.",
        draw=draw,
        height=4.6,
    )


def _blocks(
    top: Axes, bottom: Axes, formats: Sequence[Found], kind: str, look: Mapping[str, Look], theme: Theme
) -> None:
    """Gains of top-1 in points above, of KL in percent of that of quantizing everything below, a place a block."""
    for order, found in enumerate(formats):
        rows = _of_kind(found, kind)
        whole = found["rows"][0]["kl_divergence"] or 1.0
        sign = -1 if kind == "all_but" else 1
        offset = 0.0 if len(formats) == 1 else (order / (len(formats) - 1) - 0.5) * 0.5
        places = [int(row["kept"].rpartition(".")[2]) + offset for row in rows]
        gains = [row["gain"] for row in rows]
        mine = look[found["format"]]
        _marks(top, places, gains, "top1", 1.0, mine, theme, found["format"])
        _marks(bottom, places, gains, "kl", sign * 100 / whole, mine, theme, None)
    for axes in (top, bottom):
        axes.axhline(0, color=theme.baseline, linewidth=1.4, zorder=2)
        axes.grid(visible=False, axis="x")
        count = len(_of_kind(formats[0], kind))
        axes.set_xticks(range(0, count, 1 if count <= 14 else 3))
        axes.set_xlim(-0.7, count - 0.3)


def _marks(
    axes: Axes,
    places: Sequence[float],
    gains: Sequence[Found],
    measure: str,
    scale: float,
    look: Look,
    theme: Theme,
    label: str | None,
) -> None:
    size = 6.5 if len(places) <= 14 else 4.5
    for place, gain in zip(places, gains, strict=True):
        value = gain[measure] * scale
        low, high = sorted(end * scale for end in gain[f"{measure}_ci95"])
        axes.errorbar(
            place, value, yerr=[[max(value - low, 0)], [max(high - value, 0)]], fmt=look.marker, color=look.color,
            markersize=size, elinewidth=1.2, zorder=3,
            markerfacecolor=look.color if real(gain, measure) else theme.surface,
        )  # fmt: skip
    if label:  # the legend shows the filled mark, whether or not there is one
        axes.plot([], [], look.marker, color=look.color, markersize=7, linestyle="none", label=label)


def _reference(axes: Axes, known: Sequence[Found], look: Mapping[str, Look], theme: Theme) -> None:
    for order, found in enumerate(known):
        whole, _, blocks = REFERENCE[found["format"]]
        offset = 0.0 if len(known) == 1 else (order / (len(known) - 1) - 0.5) * 0.5
        axes.plot(
            [block + offset for block in blocks], [top1 - whole for top1 in blocks.values()], look[found["format"]].marker,
            color=look[found["format"]].color, markersize=6.5, linestyle="none", markerfacecolor=theme.surface,
        )  # fmt: skip
    axes.axhline(0, color=theme.baseline, linewidth=1.4, zorder=2)
    axes.set_xlim(20.3, REFERENCE_BLOCKS - 0.3)
    axes.set_xticks([21, 22, 23])
    axes.grid(visible=False, axis="x")
    axes.set_title("reference", fontsize=10, color=theme.muted, fontweight="normal")


def _kept_caption(formats: Sequence[Found], blocks: int, known: bool) -> str:
    gains = [row["gain"] for found in formats for row in _of_kind(found, "block")]
    top1 = sum(real(gain, "top1") for gain in gains)
    kl = sum(real(gain, "kl") for gain in gains)
    text = (
        f"With 95 % intervals; filled where real after Holm's correction over {words.counted(blocks, 'block')}: "
        f"{top1 or 'none'} of {len(gains)} differences of top-1, {kl or 'none'} of {len(gains)} of KL."
    )
    if known:
        text += (
            f" At the right, the best of the reference study's ViT-L/16, which has {REFERENCE_BLOCKS} blocks"
            f"{f' where this model has {blocks}' if blocks != REFERENCE_BLOCKS else ''}; it gave no intervals."
        )
    return text


def _first_last_caption(formats: Sequence[Found], named: bool, blocks: int) -> str:
    parts = []
    for found in formats:
        gain = _of_kind(found, "first_last")[0]["gain"]
        change = f"{'+' if gain['top1'] >= 0 else ''}{words.points(gain['top1'])}"
        whole = found["rows"][0]["kl_divergence"]
        share = 100 * gain["kl"] / whole if whole else 0.0
        parts.append(
            f"{found['format']} {change} points of top-1 ({'real' if real(gain, 'top1') else 'not told from chance'}) "
            f"and {share:.0f} % less KL"
        )
    text = (
        f"Keeping the first and the last block gives {'; '.join(parts)}. "
        f"The best single block is the best of {blocks}, partly by luck."
    )
    if named:
        text += f" The reference study's best were blocks 21 (4 bits) and 23 (8 bits) of {REFERENCE_BLOCKS}."
    return text


def _first_last_rows(found: Found) -> list[tuple[str, Found]]:
    best = best_block(found["rows"])
    return [
        ("everything quantized", found["rows"][0]),
        ("first and last kept", _of_kind(found, "first_last")[0]),
        (f"{best['kept']} kept", best),
    ]


def _reference_rows(format: str) -> list[float]:
    """The reference study's changes of top-1 in points: everything quantized, first and last kept, its best block."""
    if format not in REFERENCE:
        return []
    whole, first_last, blocks = REFERENCE[format]
    return [top1 - REFERENCE_PARENT for top1 in (whole, first_last, max(blocks.values()))]


def _known(formats: Sequence[Found]) -> list[str]:
    return [found["format"] for found in formats if found["format"] in REFERENCE]


def _of_kind(found: Found, kind: str) -> list[Found]:
    return [row for row in found["rows"] if row["kind"] == kind]


def _looks(formats: Sequence[Found], theme: Theme) -> dict[str, Look]:
    return looks([found["format"] for found in formats], "", theme)


def _shape(known: bool, blocks: int) -> dict[str, Any]:
    """How the plots share axes and room: the reference's three blocks get a fifth."""
    return {"sharey": "row", "width_ratios": [4.2, 1] if blocks <= 14 else [5, 1]} if known else {"sharex": True}
