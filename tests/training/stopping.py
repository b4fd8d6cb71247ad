"""A training that is interrupted at a chosen step, as Ctrl-C would do it."""

from __future__ import annotations

from typing import Any

import pytest

from petalite.training import loop


def stop_training(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let training raise KeyboardInterrupt after so many steps, until `monkeypatch.undo()`."""
    steps, original = 0, loop._Loop._step

    def stopping(self: loop._Loop, *args: Any) -> float:
        nonlocal steps
        if steps == after:
            raise KeyboardInterrupt
        steps += 1
        return original(self, *args)

    monkeypatch.setattr(loop._Loop, "_step", stopping)
