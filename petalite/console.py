"""What a person sees while work goes on: lines and bars on stderr, so that stdout stays free for results.

say("nf4: 73 layers packed")
for batch in track(batches, "evaluate", total=26): ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence `say` and `track` (the `--quiet` option)."""
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    """One line on stderr, unless quiet."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """One line on stderr that `--quiet` does not silence: something the person has to know."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def shows_bars() -> bool:
    """Whether bars are drawn: on a terminal, unless quiet."""
    return not _quiet and sys.stderr.isatty()


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a bar, a count and the time left; on a terminal only, and never when quiet."""
    if not shows_bars():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if total is None and isinstance(items, Sized):
        total = len(items)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, description=label, total=total)
