"""Training from a name: what `train` in Python is.

checkpoint = train("digits", "vit_tiny_patch16_224", "runs/one", TrainRecipe(method="full"), pretrained=False)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petalite.checkpoint import Checkpoint
from petalite.data import ImageData, open_data
from petalite.recipe import TrainRecipe
from petalite.training.loop import train_from
from petalite.training.start import start_checkpoint


def train(
    data: str | Path | ImageData,
    model: str | Path,
    out: str | Path,
    recipe: TrainRecipe | None = None,
    *,
    pretrained: bool = True,
    image_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
) -> Checkpoint:
    """Fine-tune `model` on `data` and write the best epoch to `out/checkpoints/FORMAT`.

    A plain model ends merged to plain fp32. A quantized checkpoint (methods qlora and qat) keeps its plan; with it, the
    start counts as an epoch, so that the result is never worse on the validation images than what was given.
    A resume point in `out/train/checkpoints/last.pt` is continued if it belongs to the same training. Under torchrun
    every process calls this, and the batch is spread over them.
    Raises PetaliteError for bad data, an unsupported model, divergence, and memory that does not suffice for one image.
    """
    recipe = recipe or TrainRecipe()
    images = data if isinstance(data, ImageData) else open_data(data, seed)
    start = start_checkpoint(
        model, recipe.method, pretrained=pretrained, classes=images.classes, image_size=image_size,
        model_args=model_args, seed=seed,
    )  # fmt: skip
    return train_from(start, images, Path(out), recipe, seed=seed, device=device, workers=workers)
