"""The model card: a README.md in every checkpoint that says what it is and how to load it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from petalite.plan import Plan


def model_card(config: Mapping[str, Any], plan: Plan, weights_bytes: int, notes: Mapping[str, Any]) -> str:
    """Markdown with the hub's metadata in front. `notes`: lines of "key: value" on the origin, e.g. data and metrics."""
    settings = config["pretrained_cfg"]
    height, width = settings["input_size"][-2:]
    licence = notes.get("license") or settings.get("license") or "other"
    rows = {
        "architecture": config["architecture"],
        "classes": config["num_classes"],
        "input": f"{height} x {width} pixels, mean {settings.get('mean')}, std {settings.get('std')}",
        "weights": f"{_formats(plan)} (norms and biases: {plan.rest}), {weights_bytes:,} bytes",
        **{key: value for key, value in notes.items() if key != "license"},
    }
    if any(plan.merge):
        rows["tokens merged"] = f"{sum(plan.merge)} over {len(plan.merge)} blocks"
    if plan.kept:
        rows["kept out of quantization"] = ", ".join(plan.kept)
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""---
library_name: timm
pipeline_tag: image-classification
license: {licence}
tags: [image-classification, vision-transformer, petalite, {plan.format}]
---
# {config["architecture"]}, {plan.format}

| | |
|---|---|
{table}

```python
import petalite

classifier = petalite.load("path/to/this/folder")
classifier.predict(["photo.jpg"])
```
"""


def _formats(plan: Plan) -> str:
    """How many layers have which format, the most frequent first."""
    counts = Counter(plan.layers.values())
    return ", ".join(f"{stored} in {count} layers" for stored, count in counts.most_common())
