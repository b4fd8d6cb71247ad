"""Predictions for files, folders, globs or a list on stdin: a CSV with the five most likely classes of each image.

    summary = predict("runs/flowers/checkpoints/int8", ["photos/", "extra/*.jpg"], out="predictions.csv")
    summary["images_per_s"]

A file that cannot be read is a row with its error; the others go on, and the command ends with exit code 1.
"""

from __future__ import annotations

import csv
import glob
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from petalite.console import say, track
from petalite.data import load_batches
from petalite.data.listing import is_image
from petalite.engine import Classifier, load
from petalite.errors import PetaliteError
from petalite.files import atomic, read_json

TOP = 5
COLUMNS = (
    "path",
    "target",
    *(f"{kind}_{rank}" for rank in range(1, TOP + 1) for kind in ("prediction", "score")),
    "error",
)
_GLOB = set("*?[")


def predict(
    checkpoint: str | Path,
    sources: Iterable[str | Path],
    out: str | Path,
    *,
    gallery: str | Path | None = None,
    device: str = "auto",
    attention: str = "auto",
    compute: str = "auto",
    engine: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Write the predictions CSV `out` for all images that `sources` name, in their order.

    gallery: also write a PNG of sample predictions there. `target` is filled where an image lies in a folder that is
    one of the checkpoint's classes. Returns counts, seconds and images/s (from the files to the CSV, without loading).
    Raises PetaliteError when a source names no image.
    """
    classifier = load(checkpoint, device, attention, compute, threads, engine)
    paths = expand(sources)
    folders = class_folders(Path(checkpoint), classifier)
    started = time.perf_counter()
    rows: list[dict[str, Any]] = [{} for _ in paths]
    read: deque[list[int]] = deque()  # the images of each batch whose logits are still to come

    def pixels() -> Iterator[Tensor]:
        batches = load_batches(paths, classifier.preprocess, batch_size, workers)
        for batch in track(batches, "predict", total=math.ceil(len(paths) / max(batch_size, 1))):
            for index, message in batch.errors:
                rows[index] = row(paths[index], folders.get(paths[index].parent.name, ""), error=message)
            if len(batch.indices):
                read.append(batch.indices.tolist())
                yield batch.pixels

    for logits in classifier.stream(pixels()):
        indices = read.popleft()
        targets = [folders.get(paths[index].parent.name, "") for index in indices]
        named = rows_of(classifier, logits, [paths[index] for index in indices], targets)
        for index, filled in zip(indices, named, strict=True):
            rows[index] = filled
    write_predictions(Path(out), rows)
    seconds = time.perf_counter() - started
    if gallery is not None:
        from petalite.report.gallery import write_gallery

        write_gallery(rows, Path(gallery))
    errors = sum(bool(filled["error"]) for filled in rows)
    summary = {
        "images": len(rows),
        "errors": errors,
        "seconds": round(seconds, 3),
        "images_per_s": round(len(rows) / seconds, 2),
        "out": str(out),
        "info": classifier.info.as_dict(),
    }
    say(f"predict: {len(rows)} images, {errors} unreadable, {summary['images_per_s']:.1f} images/s -> {out}")
    return summary


def expand(sources: Iterable[str | Path], stdin: TextIO | None = None) -> list[Path]:
    """Files for files, folders (searched all the way down), globs, and `-` (a list of paths on stdin, one a line).

    A file that is named stays, whatever its ending; folders and globs give files with an image's ending. Raises
    PetaliteError for a source that does not exist or holds no image.
    """
    found: list[Path] = []
    for source in sources:
        text = str(source)
        if text == "-":
            if stdin is None:
                raise PetaliteError("'-' reads a list of paths from stdin, which is not available here")
            found += [Path(line.rstrip("\r\n")) for line in stdin if line.strip()]
            continue
        path = Path(text)
        if path.is_dir():
            images = sorted(file for file in path.rglob("*") if file.is_file() and is_image(file.name))
            if not images:
                raise PetaliteError(f"{path} holds no images")
            found += images
        elif path.exists():
            found.append(path)
        elif _GLOB & set(text):
            images = sorted(Path(name) for name in glob.glob(text, recursive=True) if is_image(name))
            if not images:
                raise PetaliteError(f"no image matches {text}")
            found += images
        else:
            raise PetaliteError(f"{path} does not exist")
    if not found:
        raise PetaliteError("no images to predict; name files, folders, globs, or '-' for a list on stdin")
    return found


def rows_of(
    classifier: Classifier, logits: Tensor, paths: Sequence[Path], targets: Sequence[str]
) -> list[dict[str, Any]]:
    """A CSV row for each row of logits (N, classes)."""
    return [
        row(path, target, [(prediction.label, prediction.score) for prediction in predictions])
        for path, target, predictions in zip(paths, targets, classifier.named(logits, TOP), strict=True)
    ]


def row(path: Path, target: str, ranked: Sequence[tuple[str, float]] = (), error: str = "") -> dict[str, Any]:
    """One CSV row; `ranked` holds up to five (class name, score)."""
    values: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    values |= {"path": str(path), "target": target, "error": error}
    for rank, (label, score) in enumerate(ranked[:TOP], start=1):
        values |= {f"prediction_{rank}": label, f"score_{rank}": f"{score:.6f}"}
    return values


def write_predictions(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
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
