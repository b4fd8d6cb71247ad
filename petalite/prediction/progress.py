"""A bar for a run of which nobody may know yet how long it is: images, images/s, and the time left once it is counted.

with progress(count) as advance:
    advance(32)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from petalite import console
from petalite.errors import PetaliteError


@contextmanager
def progress(count: Callable[[], int | None]) -> Iterator[Callable[[int], None]]:
    """Yields what to call with the number of images that are done; on a terminal only, and never when quiet.

    count: how many images there are to do, None where that cannot be known. It is called once the first ones are done,
    in a thread of its own, so that listing millions of files delays nothing.
    """
    if not console.shows_bars():
        yield lambda images: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Images a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.1f} images/s")

    columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=60) as bar:
        task = bar.add_task("predict", total=None)

        def counted() -> None:
            try:
                bar.update(task, total=count())
            except PetaliteError:  # the run itself comes upon it and says so
                return

        counting = threading.Thread(target=counted, daemon=True)

        def advance(images: int) -> None:
            if counting.ident is None:
                counting.start()
            bar.advance(task, images)

        yield advance
