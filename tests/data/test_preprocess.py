"""The preprocessing equals timm's own evaluation transform, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from petalite.data import Preprocess
from petalite.errors import PetaliteError

Noise = Callable[..., Image.Image]

SIZES = [(256, 340), (333, 256), (50, 50), (17, 301), (64, 64)]


def config(**changes: Any) -> dict[str, Any]:
    """A checkpoint's config with changes to its pretrained_cfg."""
    pretrained = {
        "input_size": [3, 64, 64],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    return {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": pretrained | changes}


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (64, 32)], ids=str)
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0, 1.2])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_equals_timm(noise: Noise, interpolation: str, crop_mode: str, crop_pct: float, size: tuple[int, int]) -> None:
    written = config(interpolation=interpolation, crop_mode=crop_mode, crop_pct=crop_pct, input_size=[3, *size])
    preprocess = Preprocess.from_config(written)
    resolved = resolve_data_config({}, pretrained_cfg=written["pretrained_cfg"])
    to_uint8 = create_transform(**resolved, is_training=False, use_prefetcher=True)
    to_float = create_transform(**resolved, is_training=False)
    for height, width in SIZES:
        image = noise(height, width)
        pixels = preprocess(image)
        assert pixels.dtype == torch.uint8 and pixels.shape == (3, *size) and pixels.is_contiguous()
        assert torch.equal(pixels, to_uint8(image))
        assert np.array_equal(preprocess.pixels(image), pixels.numpy())
        assert torch.equal(preprocess.normalize(pixels[None])[0], to_float(image))


def test_defaults_are_timms() -> None:
    bare = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    resolved = resolve_data_config({}, pretrained_cfg=bare)
    preprocess = Preprocess.from_config({"pretrained_cfg": bare})
    assert preprocess.interpolation == resolved["interpolation"]
    assert preprocess.crop_pct == resolved["crop_pct"]
    assert preprocess.crop_mode == resolved["crop_mode"]


@pytest.mark.parametrize(("image_size", "expected"), [(96, (96, 96)), ([96, 32], (96, 32)), (None, (64, 64))])
def test_the_models_image_size_wins(image_size: Any, expected: tuple[int, int]) -> None:
    assert Preprocess.from_config({**config(), "model_args": {"img_size": image_size}}).size == expected


def test_normalizing_in_inference_mode_does_not_spoil_training() -> None:
    preprocess = Preprocess.from_config(config(mean=[0.1, 0.2, 0.3]))
    with torch.inference_mode():
        preprocess.normalize(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    scale = torch.ones(1, requires_grad=True)
    (preprocess.normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)) * scale).sum().backward()
    assert scale.grad is not None


def test_normalizing_leaves_the_pixels_alone(noise: Noise) -> None:
    preprocess = Preprocess.from_config(config())
    pixels = preprocess(noise(64, 64))[None]
    before = pixels.clone()
    preprocess.normalize(pixels)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({}, "config.json has no pretrained_cfg: preprocessing unknown; add it as timm writes it"),
        (config(mean=None, std=None), "pretrained_cfg lacks mean, std"),
        (config(mean=[0.5, 0.5]), "the preprocessing in pretrained_cfg is invalid"),
        (config(input_size=224), "the preprocessing in pretrained_cfg is invalid"),
        (config(input_size=[1, 64, 64]), "a model of 1 input channels; only RGB (3) is supported"),
        (config(input_size=[3, 0, 64]), "the input size (0, 64) is not positive"),
        (config(interpolation="bicubik"), "unknown interpolation 'bicubik' (did you mean 'bicubic'?); known: "),
        (
            config(crop_mode="centre"),
            "unknown crop_mode 'centre' (did you mean 'center'?); known: center, squash, border",
        ),
        (config(crop_pct=-1), "crop_pct -1.0 is not in (0, 2]"),
        (config(std=[0.5, 0.0, 0.5]), "must be finite, std above 0"),
        (config(mean=[float("nan"), 0.0, 0.5]), "must be finite, std above 0"),
    ],
)
def test_what_cannot_be_used_is_refused(broken: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PetaliteError, match=re.escape(complaint)):
        Preprocess.from_config(broken)
