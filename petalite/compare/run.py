"""The verb: read the studies, hold them against each other, judge the newest, and write the page where one is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from petalite.compare.changes import Change, changes
from petalite.compare.entries import Entry, Labelled, entries_of, labelled
from petalite.compare.front import Beaten, dominated, pareto_front
from petalite.compare.gate import judge, parse
from petalite.files import write_text

SCHEMA = 1


def compare(studies: Sequence[str | Path], *, fail_if: Sequence[str] = ()) -> dict[str, Any]:
    """Several studies as one JSON document: `entries`, `front`, `dominated`, `changes` and `gate`.

    studies: folders, from the oldest to the newest. fail_if: conditions on the newest, e.g. "nf4.drop_points > 1";
    `gate.passed` is whether none of them holds.
    Raises PetaliteError for fewer than two studies, folders without results, and conditions that cannot be judged.
    """
    rules = [parse(text) for text in fail_if]
    read = labelled([Path(study) for study in studies])
    entries = entries_of(read)
    front = pareto_front(entries)
    before, newest = read[-2:]
    judged = [found for rule in rules for found in judge(rule, newest, before)]
    return {
        "schema": SCHEMA,
        "studies": [_study(one) for one in read],
        "entries": [_entry(entry, entry in front) for entry in entries],
        "front": [entry.name for entry in front],
        "dominated": [_beaten(one) for one in dominated(entries)],
        "changes": {
            "from": before.label,
            "to": newest.label,
            "variants": [_change(change) for change in changes(before, newest)],
        },
        "gate": {"rules": judged, "passed": not any(found["fails"] for found in judged)},
    }


def write_comparison(studies: Sequence[str | Path], out: Path) -> Path:
    """Write `out/index.html`, which holds everything it shows, and its figures; the page's path."""
    from petalite.compare.charts import comparison_charts
    from petalite.compare.page import render
    from petalite.report.figures import draw_charts

    read = labelled([Path(study) for study in studies])
    entries = entries_of(read)
    pictures = draw_charts(comparison_charts(read, entries), out / "figures")
    page = out / "index.html"
    write_text(page, render(read, entries, pictures))
    return page


def _study(one: Labelled) -> dict[str, Any]:
    baseline = one.study.baseline
    return {
        "label": one.label,
        "data": one.study.data.get("name"),
        "fingerprint": one.study.data.get("fingerprint"),
        "images": one.study.images,
        "baseline": baseline.name if baseline else None,
        "budget_points": one.study.budget,
    }


def _entry(entry: Entry, on_front: bool) -> dict[str, Any]:
    variant = entry.variant
    return {
        "study": entry.label,
        "variant": variant.name,
        "status": variant.status,
        "reason": variant.reason or None,
        "group": entry.group,
        "drop_points": variant.drop,
        "drop_ci95": list(variant.drop_ci) if variant.drop_ci else None,
        "images_per_s": variant.images_per_s,
        **{name: {"value": one.value, "ci95": [one.low, one.high]} for name, one in entry.measures.items()},
        "front": on_front,
    }


def _beaten(one: Beaten) -> dict[str, Any]:
    return {
        "entry": one.entry.name,
        "by": one.by.name,
        "better_in": list(one.better),
        "within_noise": list(one.within_noise),
        "certain": one.certain,
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        **asdict(change),
        "interval": list(change.interval) if change.interval else None,
        "within_noise": change.within_noise,
    }
