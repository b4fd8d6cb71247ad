"""Where training starts: a checkpoint folder, a timm name, or random weights, with a head for the data's classes.

Methods that recover accuracy (`RECOVERING`) take a quantized checkpoint as it is, packed; all others a plain one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from petalite import models
from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.errors import PetaliteError
from petalite.plan import Plan

#: Methods that train a quantized checkpoint on, as a quantized checkpoint.
RECOVERING = ("qlora", "qat")


def start_checkpoint(
    model: str | Path,
    method: str,
    *,
    pretrained: bool = True,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Checkpoint:
    """What `method` starts from: a quantized checkpoint as it stands on disk, or plain float32 tensors.

    Raises PetaliteError as `starting_point` does; for `qat` from a plain model; and for a quantized checkpoint with
    other classes or another image size than its own.
    """
    given = read_checkpoint(model) if method in RECOVERING and _is_folder(model) else None
    if given is not None and given.packed:
        if classes is not None and tuple(classes) != given.classes:
            raise PetaliteError(
                f"{model} knows {len(given.classes)} classes, and recovery keeps its head; the images have "
                + (f"{len(classes)}" if len(classes) != len(given.classes) else "others of that number")
            )
        if image_size is not None or model_args or not pretrained:
            raise PetaliteError(f"{model} is quantized: its shape and image size are fixed; leave those options out")
        return given
    if method == "qat":
        raise PetaliteError(f"qat starts from a quantized checkpoint, {model} is plain; `petalite quantize` makes one")
    config, tensors = starting_point(
        model, pretrained=pretrained, classes=classes, image_size=image_size, model_args=model_args, seed=seed
    )
    return Checkpoint(Path(model), config, fp32_plan(config), tensors)


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
    if _is_folder(model):
        if not pretrained:
            raise PetaliteError(f"{model} is a checkpoint; --pretrained no goes with a timm name")
        if model_args:
            raise PetaliteError(f"{model} is a checkpoint, whose shape is fixed; model_args go with a timm name")
        checkpoint = read_checkpoint(model)
        if checkpoint.packed:
            raise PetaliteError(
                f"{model} is quantized ({checkpoint.plan.format}); use `petalite train` with --method qlora or qat, "
                "or start from its plain parent"
            )
        return models.adapt(checkpoint.config, checkpoint.plain_tensors(), classes=classes, image_size=image_size)
    return models.create(
        str(model), pretrained=pretrained, classes=classes, image_size=image_size, model_args=model_args, seed=seed
    )


def check_start(model: str | Path, pretrained: bool = True, method: str = "full", teacher: str = "") -> None:
    """Raise PetaliteError now for a checkpoint folder from which training by `method` could not start."""
    if _is_folder(model) or method == "qat":
        start_checkpoint(model, method, pretrained=pretrained)
    else:
        models.check_name(str(model))
    if teacher:
        read_checkpoint(teacher)


def layers_of(model: str | Path, model_args: Mapping[str, Any] | None = None) -> list[str]:
    """The layers that plans of what `model` becomes may name: a checkpoint folder's, or those of timm's name."""
    if _is_folder(model):
        return list(read_checkpoint(model).plan.layers)
    return models.layers(models.build({"architecture": str(model), "model_args": dict(model_args or {})}))


def fp32_plan(config: models.Config) -> Plan:
    """Every layer in float32."""
    return Plan("fp32", dict.fromkeys(models.layers(models.build(config)), "fp32"), "fp32")


def _is_folder(model: str | Path) -> bool:
    text = str(model)
    return Path(model).is_dir() or text.startswith((".", "/", "~")) or "\\" in text or text.count("/") > 0
