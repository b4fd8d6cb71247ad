"""The only preprocessing there is, read from a checkpoint's `config.json`: what the model saw when it was trained.

The geometry (resize, crop) works on the PIL image and gives uint8, so that batches are small to move; the arithmetic
(scale, mean, std) works on the whole batch, on the device. Both steps equal timm's evaluation transform exactly.

    preprocess = Preprocess.from_config(json.loads((checkpoint / "config.json").read_text()))
    pixels = preprocess(decode("photo.jpg"))           # uint8, (3, H, W)
    x = preprocess.normalize(pixels[None])             # float32, (1, 3, H, W)
    array = preprocess.pixels(decode("photo.jpg"))     # the same pixels in NumPy, for who does without PyTorch
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from petalite.errors import PetaliteError, did_you_mean

if TYPE_CHECKING:
    import torch

#: uint8 (3, H, W), or a batch of them.
Pixels: TypeAlias = "NDArray[np.uint8]"

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class Preprocess:
    """How an RGB image becomes a model's input; `size` is (height, width) in pixels, `mean` and `std` are of 0..1.

    `crop_mode`: "center" scales the shorter side to `size / crop_pct` and crops the middle; "squash" scales both sides
    to it, whatever the shape; "border" scales the longer side to it and fills up with the mean colour.
    """

    size: tuple[int, int]
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        """Refuse, as a PetaliteError, what could only fail or mislead later."""
        if min(self.size) < 1:
            raise PetaliteError(f"preprocessing: the input size {self.size} is not positive")
        if self.interpolation not in INTERPOLATIONS:
            hint = did_you_mean(self.interpolation, INTERPOLATIONS)
            raise PetaliteError(
                f"preprocessing: unknown interpolation '{self.interpolation}'{hint}; known: {', '.join(INTERPOLATIONS)}"
            )
        if self.crop_mode not in CROP_MODES:
            hint = did_you_mean(self.crop_mode, CROP_MODES)
            raise PetaliteError(
                f"preprocessing: unknown crop_mode '{self.crop_mode}'{hint}; known: {', '.join(CROP_MODES)}"
            )
        if not 0 < self.crop_pct <= 2:
            raise PetaliteError(f"preprocessing: crop_pct {self.crop_pct} is not in (0, 2]")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise PetaliteError(f"preprocessing: mean {self.mean} and std {self.std} must be finite, std above 0")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocess:
        """Read from a whole `config.json` of timm's hub layout.

        `input_size`, `mean` and `std` must be there; interpolation, crop_pct and crop_mode have timm's defaults
        (bicubic, 0.875, center). `model_args.img_size` (an int or [height, width]) overrides the size.
        Raises PetaliteError when something is absent or invalid.
        """
        preprocessing = config.get("pretrained_cfg")
        if not isinstance(preprocessing, Mapping):
            raise PetaliteError("config.json has no pretrained_cfg: preprocessing unknown; add it as timm writes it")
        missing = [key for key in ("input_size", "mean", "std") if preprocessing.get(key) is None]
        if missing:
            raise PetaliteError(
                f"config.json: pretrained_cfg lacks {', '.join(missing)}; add what the model was trained with"
            )
        try:
            channels, height, width = (int(side) for side in preprocessing["input_size"])
            image_size = (config.get("model_args") or {}).get("img_size")
            if image_size is not None:
                height, width = (image_size, image_size) if isinstance(image_size, int) else map(int, image_size)
            mean_r, mean_g, mean_b = (float(value) for value in preprocessing["mean"])
            std_r, std_g, std_b = (float(value) for value in preprocessing["std"])
            crop_pct = float(preprocessing.get("crop_pct") or 0.875)
        except (TypeError, ValueError, AttributeError) as error:
            raise PetaliteError(f"config.json: the preprocessing in pretrained_cfg is invalid: {error}") from error
        if channels != 3:
            raise PetaliteError(f"config.json: a model of {channels} input channels; only RGB (3) is supported")
        return cls(
            size=(height, width),
            interpolation=str(preprocessing.get("interpolation") or "bicubic"),
            crop_pct=crop_pct,
            crop_mode=str(preprocessing.get("crop_mode") or "center"),
            mean=(mean_r, mean_g, mean_b),
            std=(std_r, std_g, std_b),
        )

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour, 0..255: what borders are filled with."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """An RGB image -> uint8 tensor (3, H, W), equal to timm's evaluation transform before its ToTensor."""
        return to_pixels(self.cut(image))

    def pixels(self, image: Image.Image) -> Pixels:
        """What a call gives, as an array."""
        return as_array(self.cut(image))

    def cut(self, image: Image.Image) -> Image.Image:
        """An RGB image, resized and cropped to the model's input size."""
        target = (math.floor(self.size[0] / self.crop_pct), math.floor(self.size[1] / self.crop_pct))
        height, width = self._scaled(image.height, image.width, target)
        image = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        return self._crop(image)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (N, 3, H, W) -> float32 (N, 3, H, W) on the same device, equal to timm's ToTensor + Normalize."""
        mean, std = _per_channel(self.mean, pixels.device), _per_channel(self.std, pixels.device)
        return pixels.float().div_(255).sub_(mean).div_(std)

    def _scaled(self, height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
        """The size to scale to before the crop, with timm's own rounding in each case."""
        if self.crop_mode == "squash":
            return target
        ratios = (height / target[0], width / target[1])
        if self.crop_mode == "border":
            return round(height / max(ratios)), round(width / max(ratios))
        if target[0] != target[1]:
            return round(height / min(ratios)), round(width / min(ratios))
        if height <= width:
            return target[0], int(target[0] * width / height)
        return int(target[0] * height / width), target[0]

    def _crop(self, image: Image.Image) -> Image.Image:
        """The middle `size` of `image`, over a border where the image is smaller."""
        height, width = self.size
        if image.height < height or image.width < width:
            canvas_size = (max(width, image.width), max(height, image.height))
            fill = self.fill if self.crop_mode == "border" else (0, 0, 0)
            canvas = Image.new("RGB", canvas_size, fill)
            canvas.paste(image, ((canvas_size[0] - image.width) // 2, (canvas_size[1] - image.height) // 2))
            image = canvas
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))


@lru_cache(maxsize=32)
def _per_channel(values: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    """`values` as (1, 3, 1, 1) on `device`, copied there once: a copy for each batch would make the host wait."""
    import torch

    with torch.inference_mode(False):  # kept, and so it may be used outside of inference too
        return torch.tensor(values, device=device).view(1, 3, 1, 1)


def to_pixels(image: Image.Image) -> torch.Tensor:
    """An RGB image -> uint8 tensor (3, H, W), contiguous."""
    import torch

    return torch.from_numpy(as_array(image))


def as_array(image: Image.Image) -> Pixels:
    """An RGB image -> uint8 (3, H, W), contiguous."""
    return np.asarray(image).transpose(2, 0, 1).copy()
