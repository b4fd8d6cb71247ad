"""What training does to a photo before the model sees it, as a function of the photo and one seed alone.

Because nothing else enters (no worker, no order, no global random state), a run that was killed and resumed sees the
same pixels as one that never was.

    augment = Augment(preprocess, policy="light", flip=True)
    pixels = augment(decode("photo.jpg"), 1234)        # uint8, (3, H, W); the same for 1234 on any worker

"none" is the evaluation preprocessing; "shift" moves its picture by up to a sixteenth of the side; "light" is a random
crop of 70 to 100 % of the area. Each is mirrored half of the time (`flip`; not for digits or text). "rand" is light
followed by RandAugment (Cubuk et al. 2019, arXiv:1909.13719) with two operations of magnitude 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from petalite.data.preprocess import Pixels, Preprocess, as_array
from petalite.errors import PetaliteError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

POLICIES = ("none", "shift", "light", "rand")


@dataclass(frozen=True)
class Augment:
    """A training-time transform that is deterministic in its seed; `policy` is one of none, shift, light, rand."""

    preprocess: Preprocess
    policy: str = "light"
    flip: bool = True

    def __post_init__(self) -> None:
        """Refuse an unknown policy, as a PetaliteError."""
        if self.policy not in POLICIES:
            hint = did_you_mean(self.policy, POLICIES)
            raise PetaliteError(f"unknown augmentation '{self.policy}'{hint}; known: {', '.join(POLICIES)}")

    def __call__(self, image: Image.Image, generator_seed: int) -> torch.Tensor:
        """An RGB image -> uint8 tensor (3, H, W); equal for equal seeds, and global random state stays as it was."""
        import torch

        return torch.from_numpy(self.pixels(image, generator_seed))

    def pixels(self, image: Image.Image, generator_seed: int) -> Pixels:
        """What a call gives, as an array; without an augmentation PyTorch is not imported for it."""
        if self.policy == "none":
            return self.preprocess.pixels(image)
        import torch

        # torchvision draws from the global CPU generator: seed it for this image and put it back afterwards
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator_seed)
            return as_array(self.transform(image))

    @cached_property
    def transform(self) -> Callable[[Image.Image], Image.Image]:
        """torchvision's transforms for this policy: built once, and before workers start, since the import is slow."""
        from torchvision.transforms import InterpolationMode, v2

        interpolation = InterpolationMode(self.preprocess.interpolation)
        steps: list[Any]
        if self.policy == "shift":
            height, width = self.preprocess.size
            margin = [max(1, width // 16), max(1, height // 16)]  # left and right, top and bottom
            steps = [self.preprocess.cut, v2.Pad(margin, padding_mode="edge"), v2.RandomCrop((height, width))]
        else:
            steps = [v2.RandomResizedCrop(self.preprocess.size, scale=(0.7, 1.0), interpolation=interpolation)]
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.policy == "rand":
            fill = [float(value) for value in self.preprocess.fill]
            steps.append(v2.RandAugment(num_ops=2, magnitude=9, interpolation=InterpolationMode.BILINEAR, fill=fill))
        composed: Callable[[Image.Image], Image.Image] = v2.Compose(steps)
        return composed
