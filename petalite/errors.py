"""The two ways a command can end badly, each a single line for the person who reads it.

`PetaliteError` is wrong use or bad input (exit code 2): nothing useful was done. `Incomplete` means that the work
was done but something in it failed or a budget was not met (exit code 1).

    raise PetaliteError(f"{path} is not a checkpoint: config.json is missing; expected timm's hub layout")
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PetaliteError(Exception):
    """Wrong use or bad input; the message is one line that says what is wrong and what to do."""

    exit_code = 2


class Incomplete(PetaliteError):
    """Done, but something failed or a budget was not met."""

    exit_code = 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'nf4'?)"`, or an empty string when nothing known is close to `word`."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
