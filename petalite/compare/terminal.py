"""The comparison as a terminal shows it: one table, the front, who is beaten, what changed, what the gate says.

print(table(read, entries, found["gate"]["rules"]))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from petalite.compare.changes import changes
from petalite.compare.entries import Entry, Measure, entries_of, labelled
from petalite.compare.front import dominated, pareto_front
from petalite.compare.sentences import changed, described, judged, remarks
from petalite.report import words

_HEADS = ("study", "variant", "top-1 % [95 %]", "drop", "p50 ms [95 %]", "img/s", "MB", "front")


def table(studies: Sequence[str | Path], gate: Sequence[Mapping[str, Any]] = ()) -> str:
    """Everything in plain text. gate: the judged rules of `compare`."""
    read = labelled([Path(study) for study in studies])
    entries = entries_of(read)
    front = pareto_front(entries)
    several = len({entry.group for entry in entries}) > 1
    rows = [_row(entry, entry in front, several) for entry in entries]
    widths = [max(len(row[place]) for row in [_HEADS, *rows]) for place in range(len(_HEADS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in [_HEADS, *rows]]  # fmt: skip
    lines += [f"{'note' if tone == 'note' else 'attention'}: {sentence}" for tone, sentence in remarks(read, entries)]
    lines += [f"beaten: {one.entry.name}: {described(one)}" for one in dominated(entries)]
    before, newest = read[-2:]
    lines.append(f"changed from {before.label} to {newest.label}:")
    lines += [f"  {changed(change)}" for change in changes(before, newest)]
    lines += [f"gate {judged(found)}" for found in gate]
    return "\n".join(lines).replace(words.NBSP, " ")


def _row(entry: Entry, on_front: bool, several: bool) -> tuple[str, ...]:
    variant = entry.variant
    mark = f"front{f' {entry.group}' if several else ''}" if on_front else ""
    if not variant.ok:
        return (entry.label, variant.name, variant.status, "", "", "", "", "")
    return (
        entry.label,
        variant.name,
        _shown(entry.measures.get("top1"), 100),
        "" if variant.drop is None else f"{variant.drop:.2f}",
        _shown(entry.measures.get("p50_ms"), 1),
        "" if variant.images_per_s is None else f"{variant.images_per_s:.1f}",
        "" if variant.disk_bytes is None else f"{variant.disk_bytes / 1e6:.2f}",
        mark,
    )


def _shown(one: Measure | None, factor: float) -> str:
    if one is None:
        return ""
    value, low, high = (factor * number for number in (one.value, one.low, one.high))
    return f"{value:.2f}" if low == high else f"{value:.2f} [{low:.2f}, {high:.2f}]"
