"""A comparison in words: what the terminal and the page both say.

for tone, sentence in remarks(read, entries): ...
described(beaten)         # "monday/int8-fa2: nf4-fa2 is faster and smaller; top-1 within noise"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from petalite.compare.changes import Change
from petalite.compare.entries import MEASURES, Entry, Labelled, processors
from petalite.compare.front import WORDS, Beaten
from petalite.report import words
from petalite.report.variants import text

_NAMES = {"top1": "top-1", "p50_ms": "latency", "disk_bytes": "size"}
_STATUS = {
    "new": "is new",
    "gone": "is gone",
    "broken": "ran before and does not now",
    "mended": "did not run before and does now",
    "failed": "ran in neither",
}


def remarks(read: Sequence[Labelled], entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """(tone, sentence) on what limits the comparison: other images, other machines, variants that did not run."""
    found = []
    pictures = {text(one.study.data.get("fingerprint")) or one.label for one in read}
    if len(pictures) > 1:
        found.append(("note", "The studies saw different images: their accuracies are not held against each other."))
    machines = {processors(one.study) for one in read}
    if len(machines) > 1:
        found.append(
            ("note", "The studies ran on different machines: their latencies are not held against each other.")
        )
    groups = sorted({entry.group for entry in entries})
    if len(groups) > 1:
        members = (
            f"{group}: {words.listed(dict.fromkeys(entry.label for entry in entries if entry.group == group))}"
            for group in groups
        )
        found.append(("note", f"Each group of studies has a front of its own ({'; '.join(members)})."))
    for entry in entries:
        if not entry.variant.ok:
            found.append(("bad", f"{entry.name} {entry.variant.status}: {entry.variant.reason}"))
        elif not entry.complete:
            absent = words.listed(_NAMES[name] for name in MEASURES if name not in entry.measures)
            found.append(("note", f"{entry.name} has no {absent}, so it is on no front."))
    return found


def described(one: Beaten) -> str:
    """Who beats an entry, in what, and how sure that is."""
    gains = words.listed(WORDS[name] for name in one.better)
    noise = words.listed(_NAMES[name] for name in one.within_noise)
    if not gains:
        return f"{one.by.name} is nowhere worse, but all of that is within noise"
    return f"{one.by.name} is {gains}" + (f"; {noise} within noise" if noise else ", and worse in nothing")


def changed(change: Change) -> str:
    """One variant's change as a sentence."""
    if change.status != "ok":
        return f"{change.name} {_STATUS[change.status]}"
    parts = []
    if change.points is not None:
        sign = "+" if change.points > 0 else ""
        parts.append(f"top-1 {sign}{words.points(change.points)} points")
        if change.interval:
            noise = ", within noise" if change.within_noise else f", {words.p_value(change.p)}"
            parts[-1] += f" [{words.points(change.interval[0])}, {words.points(change.interval[1])}]{noise}"
        else:
            parts[-1] += " (not the same photos, so without an interval)"
    for ratio, label, more, less in (
        (change.latency_ratio, "latency", "slower", "faster"),
        (change.size_ratio, "size", "larger", "smaller"),
    ):
        if ratio is not None:
            parts.append(f"{label} {words.compared(ratio, 1.0, more, less)}")
    return f"{change.name}: {'; '.join(parts) if parts else 'nothing that both measured'}"


def judged(found: Mapping[str, Any]) -> str:
    """A rule's outcome."""
    state = "FAILS" if found["fails"] else "passes"
    value = found["reason"] or f"{found['value']:.6g}"
    return f"{state}: {found['rule']} ({found['variant']}: {value})"
