"""Structured logs: one JSON object a line on stderr.

event("worker_lost", level="error", pid=4711, requests=3)
{"time": "2026-01-31T12:00:00.123Z", "level": "error", "event": "worker_lost", "pid": 4711, "requests": 3}
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_LEVELS = ("info", "warning", "error")
_least = 0


def set_quiet(quiet: bool) -> None:
    """Keep only warnings and errors."""
    global _least
    _least = 1 if quiet else 0


def event(name: str, level: str = "info", **fields: Any) -> None:
    """Log one line. What went wrong with stderr itself (a closed pipe) is nothing a request should fail for."""
    if _LEVELS.index(level) < _least:
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = json.dumps({"time": now, "level": level, "event": name, **fields}, default=str)
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


class Bridge(logging.Handler):
    """What other packages log, as events."""

    def emit(self, record: logging.LogRecord) -> None:
        """One record as one line; a traceback becomes its last line."""
        level = "error" if record.levelno >= logging.ERROR else "warning"
        why = f": {record.exc_info[0].__name__}: {record.exc_info[1]}" if record.exc_info and record.exc_info[0] else ""
        event("log", level=level, logger=record.name, message=record.getMessage().strip() + why)


def bridge() -> None:
    """Send the warnings and errors of all packages through `event`."""
    root = logging.getLogger()
    root.handlers[:] = [Bridge()]
    root.setLevel(logging.WARNING)
