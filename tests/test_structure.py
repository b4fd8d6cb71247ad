"""Data flows one way: no module imports anything to the right of it, and each stays small and says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "petalite"
MAX_LINES = 400

#: The rooms from left to right; a module may import from its own row and from the rows above it.
ORDER = (
    ("errors", "console", "files"),
    ("data",),
    ("formats", "attention", "merging", "plan"),
    ("device", "models", "importers", "card", "checkpoint", "stages"),
    ("recipe",),
    ("straight_through", "calibration"),
    ("training",),
    ("quantization", "verification"),
    ("engine",),
    ("measure", "evaluation", "ablation", "doctor"),
    ("results", "report", "prediction", "serve", "export", "compare"),
    ("budget",),
    ("study", "speed"),
    ("options", "cli", "__main__"),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
#: Slow to import or not always installed: only inside the functions that need them.
LATE = {
    "transformers",
    "peft",
    "bitsandbytes",
    "matplotlib",
    "sklearn",
    "accelerate",
    "kagglehub",
    "flash_attn",
    "pyarrow",
    "ray",
}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in `tree`, as a dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_rooms(tree: ast.AST) -> set[str]:
    names = (name.split(".") for name in imports(tree))
    return {parts[1] for parts in names if parts[0] == "petalite" and len(parts) > 1}


def at_import(tree: ast.Module) -> ast.Module:
    """`tree` without its functions and what only type checkers read: what runs when the module is imported."""

    class Stripped(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.If | None:
            checked_only = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if checked_only else node

    stripped: ast.Module = Stripped().visit(tree)
    return stripped


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_nothing_imports_to_its_right(path: Path) -> None:
    here = room(path)
    assert here in RANK, f"petalite/{here} is in no row of ORDER: put it where the data reaches it"
    # the public face, petalite/__init__.py, counts as the last room of all: nothing inside imports through it
    rank = {**RANK, "__version__": 0}
    later = [other for other in imported_rooms(ast.parse(path.read_text())) if rank.get(other, len(ORDER)) > RANK[here]]
    assert not later, f"{here} imports {later}, which come after it"


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_heavy_packages_are_imported_late(path: Path) -> None:
    early = {name.split(".")[0] for name in imports(at_import(ast.parse(path.read_text())))}
    forbidden = LATE | {"torch", "timm"} if room(path) == "cli" else LATE
    assert not early & forbidden


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_module_is_small_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module opens with what it is, why, and an example"
    assert len(text.splitlines()) <= MAX_LINES, "a file this long probably holds two ideas"


def test_the_checks_see_what_they_forbid() -> None:
    late = "def late():\n    import petalite.cli, matplotlib"
    typed = "if TYPE_CHECKING:\n    import sklearn"
    tree = ast.parse("\n".join(["from petalite.study import run", late, "import peft", typed]))
    assert imported_rooms(tree) == {"study", "cli"}
    assert set(imports(at_import(tree))) == {"petalite.study.run", "peft"}
