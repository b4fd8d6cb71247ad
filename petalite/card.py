"""The model card: a README.md in every checkpoint that says what it is, what it was measured at and how to load it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petalite.errors import PetaliteError
from petalite.files import read_json, write_text
from petalite.plan import Plan

#: The row that the hub also reads, as `base_model`.
BASE = "base model"
_LOAD = """import petalite

classifier = petalite.load("path/to/this/folder")
classifier.predict(["photo.jpg"])"""


def model_card(
    config: Mapping[str, Any], plan: Plan, weights_bytes: int, notes: Mapping[str, Any], load: str = _LOAD
) -> str:
    """Markdown with the hub's metadata in front. `notes`: rows of "key: value" on the origin, e.g. data and metrics.

    load: Python that loads it. `base model` among the notes is the hub's name of the weights that it started from;
    `license` among them, or else in the preprocessing that came with the weights, is the card's licence. Where neither
    says, it is `other`, and the card says that nobody has.
    """
    settings = config["pretrained_cfg"]
    height, width = settings["input_size"][-2:]
    licence = notes.get("license") or settings.get("license")
    base = notes.get(BASE)
    rows = {
        "architecture": config["architecture"],
        "classes": config["num_classes"],
        "input": f"{height} x {width} pixels, mean {settings.get('mean')}, std {settings.get('std')}",
        "weights": f"{_formats(plan)} (norms and biases: {plan.rest}), {weights_bytes:,} bytes",
        **{key: value for key, value in notes.items() if key != "license"},
        "licence": licence or "not stated; that of the base model and of the data apply",
    }
    if any(plan.merge):
        rows["tokens merged"] = f"{sum(plan.merge)} over {len(plan.merge)} blocks"
    if plan.kept:
        rows["kept out of quantization"] = ", ".join(plan.kept)
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())
    front = f"base_model: {json.dumps(base)}\n" if base else ""
    return f"""---
library_name: timm
pipeline_tag: image-classification
license: {licence or "other"}
{front}tags: [image-classification, vision-transformer, petalite, {plan.format}]
---
# {config["architecture"]}, {plan.format}

| | |
|---|---|
{table}

```python
{load}
```
"""


def score_rows(accuracy: Mapping[str, Any], on: str) -> dict[str, str]:
    """Rows of a card from an `accuracy` block, with its intervals. on: what it was measured on, in words."""
    low, high = accuracy["top1_ci95"]
    rows = {f"top-1 on {on}": f"{100 * accuracy['top1']:.2f} %, 95 % interval [{100 * low:.2f}, {100 * high:.2f}]"}
    if accuracy.get("drop_points") is not None:
        low, high = accuracy["drop_ci95"]
        rows["points lost"] = f"{accuracy['drop_points']:.2f}, 95 % interval [{low:.2f}, {high:.2f}]"
    return rows


def study_rows(results: Mapping[str, Any], checkpoint: str) -> dict[str, str]:
    """Rows of a card from a study's results.json: its data with their fingerprint, and how `checkpoint` did on them.

    checkpoint: the folder's name, as `results` has it. Empty where the study did not measure it.
    """
    ran = [row for row in results.get("variants", []) if row.get("status") == "ok" and row.get("accuracy")]
    row = next((row for row in ran if Path(str(row.get("checkpoint"))).name == checkpoint), None)
    if row is None:
        return {}
    data = results.get("data") or {}
    count = data.get("images")
    rows = {"data": f"{data.get('name')}, fingerprint {data.get('fingerprint')}"}
    return rows | score_rows(row["accuracy"], f"{count} images of {data.get('name')}, {data.get('split')}")


def add_rows(folder: Path, rows: Mapping[str, Any]) -> None:
    """Put rows into the table of a checkpoint's card, in the place of those of the same name; a base model in front too.

    Raises PetaliteError where the card has no table of Petalite's.
    """
    card = Path(folder) / "README.md"
    try:
        text = card.read_text(encoding="utf-8")
    except OSError as error:
        raise PetaliteError(f"{card} cannot be read: {error.strerror or error}") from error
    lines = text.splitlines()
    if "|---|---|" not in lines:
        raise PetaliteError(f"{card} is not a card of Petalite's: its table is missing")
    kept = [line for line in lines if not any(line.startswith(f"| {key} |") for key in rows)]
    start = kept.index("|---|---|") + 1
    end = next((place for place in range(start, len(kept)) if not kept[place].startswith("|")), len(kept))
    added = [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
    kept = [*kept[:end], *added, *kept[end:]]
    if BASE in rows:
        kept = [line for line in kept if not line.startswith("base_model:")]
        place = next((place for place, line in enumerate(kept) if line.startswith("license:")), None)
        if place is not None:
            kept.insert(place + 1, f"base_model: {json.dumps(rows[BASE])}")
    write_text(card, "\n".join(kept) + "\n")


def complete_card(folder: Path) -> bool:
    """Add what the study that made a checkpoint has measured since, and what it started from; whether it was measured.

    The study is the folder two above it, as `petalite run` lays them out.
    """
    folder = Path(folder).resolve()
    study = folder.parent.parent
    results, run = study / "results.json", study / "run.json"
    rows = study_rows(read_json(results), folder.name) if results.is_file() else {}
    if not rows:
        return False
    recipe = read_json(run).get("recipe", {}) if run.is_file() else {}
    config = read_json(folder / "config.json")
    tag = config.get("pretrained_cfg", {}).get("tag")
    if recipe.get("pretrained") and tag and not Path(str(recipe.get("model"))).is_dir():
        rows[BASE] = f"timm/{config['architecture']}.{tag}"
    add_rows(folder, rows)
    return True


def _cell(value: Any) -> str:
    """Text that cannot break out of a table's cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _formats(plan: Plan) -> str:
    """How many layers have which format, the most frequent first."""
    counts = Counter(plan.layers.values())
    return ", ".join(f"{stored} in {count} layers" for stored, count in counts.most_common())
