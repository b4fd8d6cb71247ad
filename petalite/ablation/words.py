"""What an ablation found, for people: a sentence a format on what is real and what is noise, and a table.

sentence(found)     # "nf4: … after Holm's correction over 12 blocks no gain of top-1 is real at 5 %. By KL, …"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from petalite.ablation.compare import LEVEL, best_block, real

Row = Mapping[str, Any]
#: So many blocks or layers are named, the others are counted.
NAMED = 3


def sentence(found: Mapping[str, Any]) -> str:
    """Everything that `ablate` returned, in a few sentences a format."""
    return "\n".join(finding(format) for format in found["formats"])


def finding(format: Mapping[str, Any]) -> str:
    """One format in a few sentences: what quantizing costs, which kept blocks help, and which differences are noise."""
    rows: Sequence[Row] = format["rows"]
    none = rows[0]
    parts = [
        f"{format['format']}: with everything quantized, top-1 differs from the parent's by "
        f"{_points(none['top1_delta'], none['delta_ci95'])}; KL {none['kl_divergence']:.3g} "
        f"({format['compute']} arithmetic alone: {format['unquantized']['kl_divergence']:.2g}).",
        _blocks([row for row in rows if row["kind"] == "block"], none["kl_divergence"]),
        _first_last(next(row for row in rows if row["kind"] == "first_last"), none["kl_divergence"]),
        _single([row for row in rows if row["kind"] == "layer"], none["kl_divergence"]),
        _alone([row for row in rows if row["kind"] == "all_but"]),
    ]
    return " ".join(filter(None, parts))


def table(found: Mapping[str, Any]) -> str:
    """Every row, a line each."""
    width = max(len(row["kept"]) for format in found["formats"] for row in format["rows"])
    lines = [f"{'format':12} {'kept':{width}} {'top-1 %':>8} {'delta, points':>22} {'agreement':>10} {'KL':>9}"]
    for format in found["formats"]:
        for row in format["rows"]:
            low, high = row["delta_ci95"]
            delta = f"{row['top1_delta']:+.2f} [{low:+.2f}, {high:+.2f}]"
            lines.append(
                f"{format['format']:12} {row['kept']:{width}} {100 * row['top1']:8.2f} {delta:>22} "
                f"{100 * row['agreement']:9.2f}% {row['kl_divergence']:9.3g}"
            )
    return "\n".join(lines)


def cost(found: Mapping[str, Any]) -> str:
    """How many block passes were computed, and how many there would be without sharing."""
    done = sum(format["cost"]["block_passes"] for format in found["formats"])
    needed = sum(format["cost"]["from_scratch"] for format in found["formats"])
    return (
        f"{done} of {needed} block passes an image were computed ({100 * done / needed:.0f} %): the others are shared."
    )


def _blocks(rows: Sequence[Row], kl: float) -> str:
    best = best_block(rows)
    gain = best["gain"]
    most = f"Keeping one block gains at most {_points(gain['top1'], gain['top1_ci95'])} ({best['kept']})"
    if gain["top1"] <= 0:
        most = "Keeping one block gains no top-1"
    return f"{most}; {_verdict(rows)}. By KL, {_divergence(rows, kl)}."


def _verdict(rows: Sequence[Row]) -> str:
    """Which of `rows` change top-1 by more than chance."""
    over = f"after Holm's correction over {_counted(rows)}"
    found = [row["kept"] for row in rows if real(row["gain"], "top1")]
    named = f"{_listed(found)} {'is' if len(found) == 1 else 'are'}" if found else "none is"
    return f"{over} {named} real at {100 * LEVEL:.0f} %"


def _divergence(rows: Sequence[Row], kl: float) -> str:
    """Which of `rows` bring the answers nearer to the parent's by more than chance, and which take them away."""
    found = [row for row in rows if real(row["gain"], "kl")]
    helps = sorted((row for row in found if row["gain"]["kl"] > 0), key=lambda row: -row["gain"]["kl"])
    harms = [row["kept"] for row in found if row["gain"]["kl"] < 0]
    parts = [f"{len(helps) or 'none'} of {_counted(rows)} {'matters' if len(helps) <= 1 else 'matter'}"]
    if helps:
        shares = [_share(row["gain"], kl) for row in helps[:NAMED]]
        shares[0] = f"removes {shares[0]} of it"
        most = _listed(f"{row['kept']} ({share})" for row, share in zip(helps, shares, strict=False))
        parts[0] += f": {'most of all ' if len(helps) > NAMED else ''}{most}"
    if harms:
        parts.append(f"keeping {_listed(harms) if len(harms) <= NAMED else f'{len(harms)} of them'} makes it worse")
    return "; ".join(parts)


def _first_last(row: Row, kl: float) -> str:
    gain = row["gain"]
    top1 = "real" if real(gain, "top1") else "not real"
    nearer = f"{'removes' if gain['kl'] > 0 else 'adds'} {_share(gain, kl)} of the KL"
    return (
        f"Keeping the first and the last block gains {_points(gain['top1'], gain['top1_ci95'])} ({top1}) and "
        f"{nearer} ({'real' if real(gain, 'kl') else 'not real'})."
    )


def _single(rows: Sequence[Row], kl: float) -> str:
    return f"Of single layers: {_verdict(rows)}; by KL, {_divergence(rows, kl)}." if rows else ""


def _alone(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    worst = min(rows, key=lambda row: row["gain"]["kl"])
    name = worst["kept"].partition(":")[2]
    return f"Quantized alone, {name} costs the most: KL {worst['kl_divergence']:.3g}."


def _share(gain: Mapping[str, Any], kl: float) -> str:
    return f"{100 * abs(gain['kl']) / kl:.0f} %" if kl else "nothing"


def _points(value: float, interval: Sequence[float]) -> str:
    return f"{value:+.2f} points [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _counted(rows: Sequence[Row]) -> str:
    noun = "layer" if rows[0]["kind"] == "layer" else "block"
    return f"{len(rows)} {noun}{'' if len(rows) == 1 else 's'}"


def _listed(words: Iterable[str]) -> str:
    parts = list(words)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
