"""Class folders -> the names a person reads: `cat_to_name.json`, `classes.txt`, or the folders' own names.

    class_names(root, ("1", "10"))       # ("pink primrose", "globe thistle")

Predictions, reports and checkpoints show these names; folders and indices stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from petalite.errors import PetaliteError
from petalite.files import read_json


def class_names(root: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """A name for each of `folders`, in their order, no two alike.

    `cat_to_name.json` maps folders to names. `classes.txt` holds a line for each class: either "folder name", or the
    name alone in index order. A folder that `cat_to_name.json` does not mention keeps its own name.
    Raises PetaliteError when a file cannot be read or does not fit the folders.
    """
    if (root / "cat_to_name.json").is_file():
        names = _from_json(root / "cat_to_name.json")
    elif (root / "classes.txt").is_file():
        names = _from_text(root / "classes.txt", folders)
    else:
        names = {}
    return unique_names(folders, names)


def unique_names(folders: Sequence[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """The name of each folder; where two share one, the folder's name is added in brackets."""
    shown = [names.get(folder) or folder for folder in folders]
    count = Counter(shown)
    return tuple(f"{name} ({folder})" if count[name] > 1 else name for folder, name in zip(folders, shown, strict=True))


def _from_json(path: Path) -> dict[str, str]:
    names = read_json(path)
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise PetaliteError(f'{path} is not a map of folder to name, such as {{"1": "pink primrose"}}')
    return {str(folder): name.strip() for folder, name in names.items()}


def _from_text(path: Path, folders: Sequence[str]) -> dict[str, str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PetaliteError(f"{path} cannot be read as text: {error}") from error
    if set(lines) == set(folders):
        return {}
    named = {line.split()[0]: line.partition(line.split()[0])[2].strip() for line in lines}
    if set(named) == set(folders):
        return named
    if len(lines) != len(folders):
        raise PetaliteError(
            f"{path} names {len(lines)} classes but there are {len(folders)} class folders; "
            'write one line for each: "folder name", or the names alone in the order of the sorted folders'
        )
    return dict(zip(folders, lines, strict=True))
