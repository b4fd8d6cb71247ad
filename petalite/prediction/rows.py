"""The rows of a predictions file: an image, its class where it is known, and the five most likely classes.

rows = rows_of(classifier, logits, [Path("rose.jpg")], ["rose"])
write_predictions(Path("predictions.csv"), rows)
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from petalite.engine import Classifier
from petalite.engine.classifier import Logits
from petalite.files import atomic, read_json

if TYPE_CHECKING:
    from torch import Tensor

TOP = 5
COLUMNS = (
    "path",
    "target",
    *(f"{kind}_{rank}" for rank in range(1, TOP + 1) for kind in ("prediction", "score")),
    "error",
)
#: Every column as text; "" where there is nothing.
Row: TypeAlias = "dict[str, str]"


def row(path: Path | str, target: str, ranked: Sequence[tuple[str, float]] = (), error: str = "") -> Row:
    """One row; `ranked` holds up to five (class name, score)."""
    values = dict.fromkeys(COLUMNS, "")
    values |= {"path": printable(path), "target": target, "error": printable(error)}
    for rank, (label, score) in enumerate(ranked[:TOP], start=1):
        values |= {f"prediction_{rank}": label, f"score_{rank}": f"{score:.6f}"}
    return values


def rows_of(
    classifier: Classifier, logits: Tensor | Logits, paths: Sequence[Path | str], targets: Sequence[str]
) -> list[Row]:
    """A row for each row of logits (N, classes)."""
    return [
        row(path, target, [(prediction.label, prediction.score) for prediction in predictions])
        for path, target, predictions in zip(paths, targets, classifier.named(logits, TOP), strict=True)
    ]


def write_predictions(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """The predictions CSV of the contract, written atomically."""
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def class_folders(checkpoint: Path, classifier: Classifier) -> dict[str, str]:
    """Class folder name -> class name, as the training data had them; empty when the checkpoint does not say."""
    folders = read_json(checkpoint / "config.json").get("class_folders")
    if not isinstance(folders, list) or len(folders) != len(classifier.classes):
        return {}
    return dict(zip(map(str, folders), classifier.classes, strict=True))


def printable(text: Path | str) -> str:
    """A file's name as text that every format can hold: bytes that are no UTF-8 are spelled out, as in `caf\\xe9.jpg`."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
