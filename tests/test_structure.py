"""Data flows one way: no module imports anything to the right of it, and each stays small and says what it is.

`python tests/test_structure.py`, a step of `make lint`, prints every file that breaks a rule, without running a test.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "petalite"
MAX_LINES = 400

#: The rooms from left to right; a module may import from its own row and from the rows above it.
ORDER = (
    ("errors", "console", "files"),
    ("data",),
    ("formats", "attention", "merging", "plan"),
    ("device", "models", "outline", "importers", "card", "checkpoint", "stages"),
    ("recipe",),
    ("straight_through", "calibration"),
    ("training",),
    ("quantization", "verification"),
    ("engine",),
    ("measure", "evaluation", "ablation", "doctor"),
    ("results", "report", "prediction", "serve", "export", "compare", "profiling"),
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
#: What stands beside the package: as small, but free to import what it likes.
BESIDE = sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


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


def against_the_flow(path: Path) -> list[str]:
    """What a module imports that comes after it."""
    here = room(path)
    if here not in RANK:
        return [f"petalite/{here} is in no row of ORDER: put it where the data reaches it"]
    # the public face, petalite/__init__.py, counts as the last room of all: nothing inside imports through it
    rank = {**RANK, "__version__": 0}
    rooms = sorted(imported_rooms(ast.parse(path.read_text())))
    later = [other for other in rooms if rank.get(other, len(ORDER)) > RANK[here]]
    return [f"{here} imports {other}, which comes after it" for other in later]


def heavy_at_import(path: Path) -> list[str]:
    """Packages that a module imports where its functions should."""
    early = {name.split(".")[0] for name in imports(at_import(ast.parse(path.read_text())))}
    forbidden = LATE | {"torch", "timm"} if room(path) == "cli" else LATE
    return [f"{name} is imported with the module; import it inside the function" for name in sorted(early & forbidden)]


def too_long(path: Path) -> list[str]:
    """Whether a file has grown too long."""
    lines = len(path.read_text().splitlines())
    return [f"{lines} lines; a file this long probably holds two ideas"] if lines > MAX_LINES else []


def silent(path: Path) -> list[str]:
    """Whether a module does not say what it is."""
    told = ast.get_docstring(ast.parse(path.read_text()))
    return [] if told else ["a module opens with what it is, why, and an example"]


RULES = (against_the_flow, heavy_at_import, too_long, silent)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_nothing_imports_to_its_right(path: Path) -> None:
    assert against_the_flow(path) == []


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_heavy_packages_are_imported_late(path: Path) -> None:
    assert heavy_at_import(path) == []


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_module_is_small_and_says_what_it_is(path: Path) -> None:
    assert too_long(path) + silent(path) == []


def test_so_are_tests_and_benchmarks() -> None:
    assert {path.parent.name for path in BESIDE} >= {"benchmarks", "tests", "engine"}
    assert [f"{path.relative_to(ROOT)}: {problem}" for path in BESIDE for problem in too_long(path)] == []


def test_the_checks_see_what_they_forbid() -> None:
    late = "def late():\n    import petalite.cli, matplotlib"
    typed = "if TYPE_CHECKING:\n    import sklearn"
    tree = ast.parse("\n".join(["from petalite.study import run", late, "import peft", typed]))
    assert imported_rooms(tree) == {"study", "cli"}
    assert set(imports(at_import(tree))) == {"petalite.study.run", "peft"}


def test_the_lint_step_says_which_module_breaks_which_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main() == 0
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "formats").mkdir()
    (tmp_path / "nowhere.py").write_text('"""A room that is in no row."""\n')
    broken = tmp_path / "formats" / "nf5.py"
    broken.write_text("import matplotlib\nfrom petalite import study\n" + "\n" * MAX_LINES)
    monkeypatch.setitem(globals(), "MODULES", [broken, tmp_path / "nowhere.py"])
    long = tmp_path / "tests" / "test_all.py"
    long.parent.mkdir()
    long.write_text("\n" * (MAX_LINES + 1))
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "BESIDE", [long])
    assert main() == 1
    printed = capsys.readouterr().out.splitlines()
    named = ["petalite/formats/nf5.py"] * 4 + ["petalite/nowhere.py", "tests/test_all.py"]
    assert [line.partition(": ")[0] for line in printed] == named
    assert "formats imports study" in printed[0] and "matplotlib" in printed[1] and "402 lines" in printed[2]


def main() -> int:
    """Print every file that breaks a rule; 1 when there is one."""
    problems = [
        f"petalite/{path.relative_to(PACKAGE)}: {problem}"
        for path in MODULES
        for rule in RULES
        for problem in rule(path)
    ]
    problems += [f"{path.relative_to(ROOT)}: {problem}" for path in BESIDE for problem in too_long(path)]
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
