"""An augmented photo is a function of the photo and the seed, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from petalite.data import Augment, Preprocess
from petalite.errors import PetaliteError

Noise = Callable[..., Image.Image]


@pytest.mark.parametrize("policy", ["shift", "light", "rand"])
def test_deterministic_in_the_seed_alone(noise: Noise, preprocess: Preprocess, policy: str) -> None:
    augment = Augment(preprocess, policy)
    first = [augment(noise(40, 50), seed) for seed in range(8)]
    torch.manual_seed(1)
    again = [Augment(preprocess, policy)(noise(40, 50), seed) for seed in reversed(range(8))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(pixels.flatten().tolist()) for pixels in first}) > 4
    assert all(pixels.dtype == torch.uint8 and pixels.shape == (3, 16, 16) for pixels in first)


@pytest.mark.parametrize("policy", ["none", "light", "rand"])
def test_global_random_state_is_left_alone(noise: Noise, preprocess: Preprocess, policy: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    Augment(preprocess, policy)(noise(40, 50), 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_none_is_the_evaluation_preprocessing(noise: Noise, preprocess: Preprocess) -> None:
    image = noise(40, 50)
    assert torch.equal(Augment(preprocess, "none")(image, 7), preprocess(image))


def test_light_crops_mildly_and_flips_only_when_asked(preprocess: Preprocess) -> None:
    # a ramp from left (0) to right (250): its slope shows the mirror, its range how much was kept
    ramp = np.repeat(np.linspace(0, 250, 64).astype(np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    image = Image.fromarray(ramp)

    def spans(flip: bool) -> torch.Tensor:
        augment = Augment(preprocess, "light", flip)
        rows = torch.stack([augment(image, seed)[0, 8].int() for seed in range(40)])
        return rows[:, -1] - rows[:, 0]

    assert (spans(flip=False) > 100).all()
    mirrored = int((spans(flip=True) < 0).sum())
    assert 8 <= mirrored <= 32


def test_an_unknown_policy_is_refused(preprocess: Preprocess) -> None:
    with pytest.raises(
        PetaliteError, match=r"unknown augmentation 'lite' \(did you mean 'light'\?\); known: none, shift, light"
    ):
        Augment(preprocess, "lite")
