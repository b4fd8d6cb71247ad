"""An ablation that never ran: the document of ablation.json, with plausible answers drawn at random.

document(blocks=12, formats=("nf4", "int8"), reverse=True)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from petalite.ablation import sentence
from petalite.ablation.compare import Outcomes, compared
from petalite.ablation.settings import ALL, settings_of

IMAGES = 300


def document(
    blocks: int = 12, formats: tuple[str, ...] = ("nf4", "int8"), reverse: bool = False, lost: int = 9
) -> dict[str, Any]:
    """nf4 loses `lost` of 300 images, of which keeping block 1 gives all back; the other formats lose a third of it."""
    names = [f"blocks.{index}.mlp.fc1" for index in range(blocks)]
    settings = settings_of(names, reverse=reverse)
    random = np.random.default_rng(0)
    parent = np.ones(IMAGES, dtype=np.int32)
    found = []
    for place, format in enumerate(formats):
        wrong = lost if place == 0 else lost // 3
        noise = random.exponential(0.01 / (1 + 5 * place), IMAGES)
        outcomes = Outcomes(
            np.ones((len(settings), IMAGES), dtype=np.int32), np.tile(noise, (len(settings), 1)), done=IMAGES
        )
        for row, setting in enumerate(settings):
            kept = len(setting.layers)
            if setting.kept != ALL and "blocks.1." not in " ".join(setting.layers):
                outcomes.predictions[row, :wrong] = 0
            outcomes.divergences[row] *= (1 - kept / blocks) * random.uniform(0.9, 1.05, IMAGES) + 0.01
        rows = compared(settings, outcomes, parent, parent)
        found.append(
            {
                "format": format,
                "kept_in": "bf16",
                "attention": "sdpa",
                "compute": "bf16",
                "device": "cpu",
                "cost": {"block_passes": 102, "from_scratch": 180, "share": 102 / 180, "seconds": 1.0},
                "rows": [row for row in rows if row["kept"] != ALL],
                "unquantized": next(row for row in rows if row["kept"] == ALL),
            }
        )
    made: dict[str, Any] = {"schema": 1, "blocks": blocks, "parent": {"format": "fp32", "top1": 1.0}, "formats": found}
    return {**made, "sentence": sentence(made)}
