"""docs/petalite.ipynb: its code runs from top to bottom in one namespace, and no output in it was made up."""

from __future__ import annotations

import ast
import contextlib
import json
from io import StringIO
from typing import Any

import pytest

from tests.documents import ROOT

NOTEBOOK = ROOT / "docs" / "petalite.ipynb"


@pytest.fixture(scope="module")
def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return found


def test_outputs_are_stripped(cells: list[dict[str, Any]]) -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


def test_it_runs_from_top_to_bottom(cells: list[dict[str, Any]]) -> None:
    """As a kernel does, without one: the cells in order in one namespace, each ending with the value that it would show."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    shown: list[Any] = []
    printed = StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in cells:
            if cell["cell_type"] == "code":
                tree = ast.parse("".join(cell["source"]))
                last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
                exec(compile(tree, cell["id"], "exec"), namespace)
                if isinstance(last, ast.Expr):
                    shown.append(eval(compile(ast.Expression(last.value), cell["id"], "eval"), namespace))
    assert shown[0] == {"train": 1077, "valid": 360, "test": 360}
    smaller = shown[2]
    assert all(ratio > 2 for ratio in smaller.values()), smaller
    assert "points lost [" in printed.getvalue()
    assert [name for name, *_ in shown[-1]] == ["fp32", "int4"]
