"""A transformers image processor's settings as timm's preprocessing fields; what timm cannot express is refused.

    read_preprocessing(folder, 224)     # {"input_size": [3, 224, 224], "crop_mode": "squash", "mean": […], …}

ViT's processor resizes to a square whatever the shape of the image ("squash"), DeiT's also crops the middle.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petalite.errors import PetaliteError
from petalite.files import read_json

#: PIL's numbers for its filters, which transformers stores, as timm names them.
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
#: What every image processor does where its file is silent, and what those that ViT folders name do.
COMMON: Mapping[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {"size": 224, "resample": 2, "do_center_crop": False},
    "DeiT": {"size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224},
}


def read_preprocessing(folder: Path, model_size: int) -> dict[str, Any]:
    """timm's fields from `preprocessor_config.json`, for a model that takes squares of `model_size` pixels.

    Raises PetaliteError when the file is missing (a guess would cost accuracy in silence), when its images are of
    another size than the model's, or when it does what timm's evaluation transform does not.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise PetaliteError(f"{folder} has no preprocessor_config.json, so its preprocessing is unknown; add the file")
    source = read_json(path)
    if not isinstance(source, dict):
        raise PetaliteError(f"{path} is not an object; expected the one that transformers writes")
    settings = _with_defaults(source, path)
    if not settings["do_resize"] or settings.get("do_pad"):
        raise PetaliteError(f"{path} does not resize, or pads; only images resized to a square are supported")
    resized = square_side(settings["size"], "size", path)
    cropped = square_side(settings.get("crop_size"), "crop_size", path) if settings["do_center_crop"] else resized
    if cropped != model_size or cropped > resized:
        raise PetaliteError(f"{path} gives images of {cropped} px, the model in config.json takes {model_size} px")
    if settings["resample"] not in RESAMPLING:
        raise PetaliteError(f"{path}: unknown resample {settings['resample']!r}; known: {RESAMPLING}")
    mean, std = _normalization(settings, path)
    return {
        "input_size": [3, cropped, cropped],
        "fixed_input_size": True,
        "interpolation": RESAMPLING[settings["resample"]],
        # timm resizes to int(size / crop_pct): aimed half a pixel high, so that rounding cannot lose one
        "crop_pct": 1.0 if cropped == resized else cropped / (resized + 0.5),
        "crop_mode": "squash",
        "mean": mean,
        "std": std,
    }


def square_side(value: Any, key: str, where: Path) -> int:
    """The side in pixels of `224`, `[224, 224]` or `{"height": 224, "width": 224}`; PetaliteError for anything else."""
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) == 2 and sides[0] == sides[1] and isinstance(sides[0], int) and sides[0] > 0:
        return int(sides[0])
    raise PetaliteError(f"{where}: {key} is {value}; only square images and patches are supported")


def _with_defaults(source: Mapping[str, Any], path: Path) -> dict[str, Any]:
    kind = str(source.get("image_processor_type") or source.get("feature_extractor_type") or "ViTImageProcessor")
    family = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    if family not in PROCESSORS:
        raise PetaliteError(f"{path} names {kind}; supported: ViTImageProcessor and DeiTImageProcessor")
    return {**COMMON, **PROCESSORS[family], **{key: value for key, value in source.items() if value is not None}}


def _normalization(settings: Mapping[str, Any], path: Path) -> tuple[list[float], list[float]]:
    """Mean and std of 0..1 values, with any other rescaling factor f folded in.

    (x · f − mean) / std = (x / 255 − mean / 255f) / (std / 255f)
    """
    mean, std = settings["image_mean"], settings["image_std"]
    if not settings["do_normalize"]:
        mean, std = [0.0] * 3, [1.0] * 3
    try:
        factor = 255 * float(settings["rescale_factor"]) if settings["do_rescale"] else 255.0
        factor = 1.0 if abs(factor - 1) < 1e-9 else factor  # 1/255 itself leaves the numbers as they stand
        mean, std = [float(value) / factor for value in mean], [float(value) / factor for value in std]
    except (TypeError, ValueError, ZeroDivisionError):
        mean, std = [], []
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise PetaliteError(f"{path}: image_mean and image_std must be three numbers each, image_std above 0")
    return mean, std
