"""The images that a calibration sees: a few hundred of the training images, without their labels."""

from __future__ import annotations

import torch
from torch import Tensor

from petalite.data import ImageData, Preprocess, load_batches
from petalite.errors import PetaliteError

#: Fewer images than this say too little about the inputs of a layer.
FEWEST = 16


def calibration_pixels(
    images: ImageData, preprocess: Preprocess, count: int, seed: int = 0, workers: int | None = None
) -> Tensor:
    """uint8 pixels (count, 3, H, W) of training images drawn with `seed`, all of them where there are fewer.

    Raises PetaliteError for fewer than 16 images and for one that cannot be read.
    """
    if count < FEWEST:
        raise PetaliteError(f"{count} calibration images are too few; use at least {FEWEST}, a few hundred are better")
    samples = images.splits["train"]
    if len(samples) < FEWEST:
        raise PetaliteError(f"{images.name} has {len(samples)} training images; a calibration needs at least {FEWEST}")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    paths = [samples[index].path for index in sorted(order)]
    parts = []
    for batch in load_batches(paths, preprocess, 64, workers):
        if batch.errors:
            raise PetaliteError(f"{batch.errors[0][1]}; remove it from the training images")
        parts.append(batch.pixels)
    pixels = torch.cat(parts)
    # load_batches gives the files in order of their names, class by class: mix them, so that every part is like the whole
    return pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed + 1))]
