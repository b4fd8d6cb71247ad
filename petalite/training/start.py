"""Where training starts: a checkpoint folder, a timm name, or random weights, with a head for the data's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from petalite import models
from petalite.checkpoint import read_checkpoint
from petalite.errors import PetaliteError
from petalite.formats import get_format


def starting_point(
    model: str | Path,
    *,
    pretrained: bool = True,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[models.Config, dict[str, Tensor]]:
    """Configuration and float32 tensors of `model`: a folder (timm's or transformers' layout) or a timm name.

    Raises PetaliteError for what is neither, for a quantized checkpoint, and when a download fails.
    """
    folder = Path(model)
    if folder.is_dir() or _looks_like_a_path(str(model)):
        if not pretrained:
            raise PetaliteError(f"{model} is a checkpoint; --pretrained no goes with a timm name")
        if model_args:
            raise PetaliteError(f"{model} is a checkpoint, whose shape is fixed; model_args go with a timm name")
        checkpoint = read_checkpoint(folder)
        if any(not get_format(stored).plain for stored in checkpoint.plan.layers.values()):
            raise PetaliteError(
                f"{model} is quantized ({checkpoint.plan.format}); training starts from a plain checkpoint"
            )
        return models.adapt(checkpoint.config, checkpoint.plain_tensors(), classes=classes, image_size=image_size)
    return models.create(
        str(model), pretrained=pretrained, classes=classes, image_size=image_size, model_args=model_args, seed=seed
    )


def check_start(model: str | Path, pretrained: bool = True) -> None:
    """Raise PetaliteError now for a checkpoint folder from which training could not start."""
    if Path(model).is_dir() or _looks_like_a_path(str(model)):
        starting_point(model, pretrained=pretrained)
    else:
        models.check_name(str(model))


def _looks_like_a_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 0
