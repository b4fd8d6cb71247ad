"""What a study left in its folder, read once: results, run, predictions, training metrics, raw samples.

    study = read_study(Path("runs/flowers"))
    study.baseline.name, study.budget, len(study.predictions["nf4-fa2"])

Only results.json has to be there. Everything else may be missing, and whatever shows it is then left out with a note.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petalite.errors import PetaliteError
from petalite.files import read_json
from petalite.report.variants import Variant, baseline, block, number, text, variants

TOP = 5


@dataclass(frozen=True)
class Prediction:
    """One row of a predictions CSV: the photo, its class where it is known, and the answers, best first."""

    path: str
    target: str | None
    top: tuple[tuple[str, float | None], ...]  # (class, score as a fraction of 1)
    error: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Prediction:
        """From a row with the CSV's columns; values may be text or numbers, and columns may be missing."""
        names = ((text(row.get(f"prediction_{k}")), row.get(f"score_{k}")) for k in range(1, TOP + 1))
        top = tuple((name, _float(score)) for name, score in names if name)
        return cls(text(row.get("path")), text(row.get("target")) or None, top, text(row.get("error")))

    @property
    def best(self) -> str | None:
        """The first answer, or None for a photo that could not be read."""
        return self.top[0][0] if self.top else None

    @property
    def score(self) -> float | None:
        """The first answer's score."""
        return self.top[0][1] if self.top else None

    @property
    def right(self) -> bool | None:
        """Whether the first answer is the target; None when either is unknown."""
        return None if self.target is None or self.best is None else self.best == self.target


@dataclass(frozen=True)
class Study:
    """A study's folder in memory. `samples` holds raw latencies in ms by variant and batch size."""

    out: Path
    results: dict[str, Any]
    run: dict[str, Any]
    variants: tuple[Variant, ...]
    baseline: Variant | None
    budget: float | None  # percentage points of top-1
    predictions: dict[str, tuple[Prediction, ...]]
    metrics: tuple[dict[str, float], ...]
    samples: dict[str, dict[int, tuple[float, ...]]]
    rounds: dict[str, int]
    ablation: dict[str, Any]  # ablation.json, empty where nothing was ablated

    @property
    def ran(self) -> list[Variant]:
        """The variants that were measured."""
        return [variant for variant in self.variants if variant.ok]

    @property
    def images(self) -> int | None:
        """How many images accuracy was measured on."""
        count = number(block(self.results, "data").get("images"))
        return None if count is None else int(count)

    @property
    def data(self) -> dict[str, Any]:
        """What is known about the images: run.json's block under results.json's."""
        return {**block(self.run, "data"), **block(self.results, "data")}

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and hardware."""
        return {**block(self.run, "environment"), **block(self.results, "environment")}

    def samples_ms(self, variant: Variant) -> tuple[float, ...]:
        """Raw latencies at the batch size of the variant's `latency`, or none."""
        return self.samples.get(variant.name, {}).get(int(variant.latency.get("batch_size", 1)), ())


def read_study(out: Path) -> Study:
    """Read the folder of a study. Raises PetaliteError when results.json is missing, or any file of it is damaged."""
    out = Path(out)
    if not (out / "results.json").is_file():
        raise PetaliteError(f"{out} holds no results.json; point to the folder of a study that was measured")
    results = read_json(out / "results.json")
    rows = variants(results)
    names = [row.name for row in rows]
    measured = {name: _object(out / "measure" / f"{name}.json") for name in names}
    return Study(
        out=out,
        results=results,
        run=_object(out / "run.json"),
        variants=tuple(rows),
        baseline=baseline(results, rows),
        budget=number(results.get("budget_points")),
        predictions={name: found for name in names if (found := _predictions(out / "predictions" / f"{name}.csv"))},
        metrics=_metrics(out / "train" / "metrics.csv"),
        samples={name: _samples(raw) for name, raw in measured.items()},
        rounds={name: count for name, raw in measured.items() if (count := _rounds(raw.get("rounds")))},
        ablation=_ablation(out / "ablation.json"),
    )


def _ablation(path: Path) -> dict[str, Any]:
    found = _object(path)
    if found and not (found.get("schema") == 1 and isinstance(found.get("formats"), list) and found["formats"]):
        raise PetaliteError(f"{path} does not hold an ablation; run it again or remove the file")
    return found


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one when there is no such file."""
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise PetaliteError(f"{path} does not hold a JSON object; run the study again to write it")
    return value


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PetaliteError(f"{path} cannot be read as CSV: {error}") from error


def _predictions(path: Path) -> tuple[Prediction, ...]:
    return tuple(Prediction.of(row) for row in _rows(path))


def _metrics(path: Path) -> tuple[dict[str, float], ...]:
    """Rows of numbers; a cell that is empty or no number is left out of its row."""
    rows = ({str(key): _float(value) for key, value in row.items()} for row in _rows(path))
    return tuple({key: value for key, value in row.items() if value is not None} for row in rows)


def _samples(raw: dict[str, Any]) -> dict[int, tuple[float, ...]]:
    by_batch = block(raw, "latency_ms")
    found = {key: [number(item) for item in items] for key, items in by_batch.items() if isinstance(items, list)}
    kept = {key: tuple(item for item in items if item is not None) for key, items in found.items()}
    return {int(key): items for key, items in kept.items() if items and str(key).isdecimal()}


def _rounds(value: Any) -> int | None:
    count = float(len(value)) if isinstance(value, list) else number(value)
    return int(count) if count else None


def _float(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            return number(float(value))
        except ValueError:
            return None
    return number(value)
