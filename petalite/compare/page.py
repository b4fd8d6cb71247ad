"""The comparison as one HTML page in the report's style: nothing is loaded from outside, all that studies hold is text."""

from __future__ import annotations

from collections.abc import Sequence

from petalite.compare.changes import changes
from petalite.compare.entries import Entry, Labelled
from petalite.compare.front import dominated, pareto_front
from petalite.compare.sentences import changed, described, remarks
from petalite.report import words
from petalite.report.figures import Picture
from petalite.report.method import machine
from petalite.report.page import environment
from petalite.report.variants import text


def render(read: Sequence[Labelled], entries: Sequence[Entry], pictures: Sequence[Picture]) -> str:
    """The page's HTML, with the pictures inside it."""
    front = pareto_front(entries)
    beaten = {one.entry.name: described(one) for one in dominated(entries)}
    before, newest = read[-2:]
    found = changes(before, newest)
    return (
        environment()
        .get_template("compare.html")
        .render(
            read=read,
            title=f"{words.listed(one.label for one in read)}",
            facts=[words.counted(len(read), "study", "studies"), *_common(read)],
            verdict=_verdict(front),
            banners=remarks(read, entries),
            entries=entries,
            front={entry.name for entry in front},
            several=len({entry.group for entry in entries}) > 1,
            beaten=beaten,
            before=before.label,
            newest=newest.label,
            changes=[(change, changed(change)) for change in found],
            pictures=list(pictures),
            words=words,
        )
    )


def _verdict(front: Sequence[Entry]) -> str:
    if not front:
        return "No variant has accuracy, latency and size measured, so there is no front."
    names = words.listed(entry.name for entry in front)
    if len(front) == 1:
        return f"{names} is the most accurate, the fastest and the smallest: no other variant beats it in anything."
    return f"On the front stand {names}: each gives up one of accuracy, speed and size for another."


def _common(read: Sequence[Labelled]) -> list[str]:
    """What is the same for all studies: images and machine."""
    names = {f"{text(one.study.data.get('name'))}, {words.counted(one.study.images or 0, 'image')}" for one in read}
    machines = {tuple(machine(one.study)[:1]) for one in read}
    return [*(names if len(names) == 1 else ()), *(next(iter(machines)) if len(machines) == 1 else ())]
