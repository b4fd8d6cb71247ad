"""What `petalite ls` lists beyond the machine's formats and backends: recipes, and what a checkpoint can be exported to.

rows = LISTINGS["recipes"]("auto")      # [{"name": "recipes/digits.toml", "about": …, "runs": True, "reason": None}, …]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from petalite.errors import PetaliteError

#: Beside the package in a copy of the repository; an installed package comes without.
_SHIPPED = Path(__file__).resolve().parents[2] / "recipes"
Row = dict[str, Any]


def recipes(device: str) -> list[Row]:
    """The recipes in `./recipes` and in the repository that the package lies in, with what keeps one from running here.

    Raises PetaliteError where there are none.
    """
    from petalite.device import resolve_device
    from petalite.doctor.trials import attention_here, formats_here
    from petalite.recipe import Recipe

    target = resolve_device(device)
    formats, attention = formats_here(target), attention_here(target)
    rows = []
    for path in _files():
        try:
            recipe = Recipe.from_toml(path)
            reason = next(_missing(recipe.variants, formats, attention), None)
            about = f"{recipe.model} on {recipe.data}: {', '.join(recipe.variants)}. {_outcome(path)}"
        except PetaliteError as error:
            about, reason = "not a recipe", str(error)
        rows.append(_row(os.path.relpath(path), about, reason))
    if not rows:
        raise PetaliteError(f"no recipes in {Path('recipes')}; they are in the repository's folder of that name")
    return rows


def targets(device: str) -> list[Row]:
    """What `petalite export --to` writes, with what is not installed."""
    from petalite.export import TARGETS

    return [_row(target.name, target.about, target.missing()) for target in TARGETS.values()]


LISTINGS: dict[str, Callable[[str], list[Row]]] = {"recipes": recipes, "targets": targets}


def _files() -> list[Path]:
    found = {path.resolve(): path for folder in (Path("recipes"), _SHIPPED) for path in sorted(folder.glob("*.toml"))}
    return list(found)


def _outcome(path: Path) -> str:
    """What a recipe's opening comment says of its outcome: the paragraph that begins with Measured or Not measured."""
    comment = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    paragraphs = (" ".join(part.split()) for part in "\n".join(comment).split("\n\n"))
    told = (part for part in paragraphs if part.startswith(("Measured: ", "Not measured here, because ")))
    return next(told, "Its outcome is not told.")


def _missing(
    variants: tuple[str, ...], formats: dict[str, str | None], attention: dict[str, dict[str, str | None]]
) -> Iterator[str]:
    """Why variants do not run here, one after the other."""
    from petalite.measure.names import parse_variant

    for variant in variants:
        format, backend, _, _ = parse_variant(variant)
        reason = formats.get(format)
        if reason:
            yield reason
        reasons = attention.get(backend, {})
        if reasons and None not in reasons.values():
            yield next(iter(reasons.values())) or ""


def _row(name: str, about: str, reason: str | None) -> Row:
    text = f"{about} (not here: {reason})" if reason else about
    return {"name": name, "about": text, "runs": reason is None, "reason": reason}
