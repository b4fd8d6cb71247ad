"""The command line: verbs only. Each calls the function of its name; heavy imports happen inside, so help is quick.

Results go to stdout (one JSON document with `--json`), everything else to stderr. Exit codes: 0 done; 1 done, but
something failed or a budget was not met; 2 wrong use or bad input.
"""

from petalite.cli import budget, checkpoints, comparing, machine, serving, sharing, studies
from petalite.cli.app import main

__all__ = ["budget", "checkpoints", "comparing", "machine", "main", "serving", "sharing", "studies"]
