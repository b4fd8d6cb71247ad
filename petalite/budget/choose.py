"""The integer program: for each layer one format, at the least cost that keeps the estimated damage within a bound.

choose(damage, cost, most=0.05)
# {"blocks.0.attn.qkv": "int4", "blocks.0.attn.proj": "int3", …}; None when nothing keeps the bound

A multiple-choice knapsack, solved exactly by scipy's branch and bound. The damages of layers are taken to add up, which
is true to second order where they are small; what it misses is measured afterwards.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

#: layer -> format -> value
Table = Mapping[str, Mapping[str, float]]


def choose(damage: Table, cost: Table, most: float) -> dict[str, str] | None:
    """A format for each layer with the smallest total cost among those whose total damage is at most `most`.

    damage, cost: for each layer the same formats. Raises RuntimeError when the solver gives up.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    pairs = [(layer, format) for layer, formats in cost.items() for format in formats]
    costs = np.array([cost[layer][format] for layer, format in pairs])
    damages = np.array([max(damage[layer][format], 0.0) for layer, format in pairs])
    once = np.array([[layer == other for other, _ in pairs] for layer in cost], dtype=float)
    scale, unit = max(float(costs.max()), 1e-30), max(most, float(damages[damages > 0].min(initial=1.0)), 1e-30)
    with _printing_to_stderr():
        solution = milp(
            c=costs / scale,
            constraints=[
                LinearConstraint(once, lb=1, ub=1),
                LinearConstraint(damages[None, :] / unit, lb=-np.inf, ub=most / unit),
            ],
            integrality=np.ones(len(pairs)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 1e-4, "time_limit": 20},
        )
    if solution.status == 2:  # infeasible
        return None
    if solution.x is None:
        raise RuntimeError(f"the integer program was not solved: {solution.message}")
    return {layer: format for (layer, format), taken in zip(pairs, solution.x, strict=True) if taken > 0.5}


def total(table: Table, chosen: Mapping[str, str]) -> float:
    """The sum over layers of a table's value for the chosen formats."""
    return sum(table[layer][format] for layer, format in chosen.items())


@contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """Some releases of scipy's solver print notes from C, which would break the one document of `--json` on stdout."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C has a buffer of its own
        os.dup2(stdout, 1)
        os.close(stdout)
