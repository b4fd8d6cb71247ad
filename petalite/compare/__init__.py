"""Compare: several studies side by side, which of their variants no other beats, what changed, and a gate for CI.

    found = compare(["runs/monday", "runs/tuesday"], fail_if=["nf4.drop_points > 1"])
    found["front"], found["changes"], found["gate"]

Studies are given from the oldest to the newest: changes go from the last but one to the last, the gate judges the last.
"""

from petalite.compare.run import compare, write_comparison

__all__ = ["compare", "write_comparison"]
