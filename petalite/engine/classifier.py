"""A checkpoint that answers: pixels in, logits or named predictions out. Made by `petalite.engine.load`.

classifier = load("runs/demo/checkpoints/nf4")
classifier.predict(["rose.jpg"], top_k=3)[0][0]     # Prediction(label='rose', index=73, score=0.98)
classifier.logits(pixels)                           # float32 (N, classes) on the CPU
classifier.info.compute                             # 'bf16': what was chosen
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from petalite.data.images import ImageSource, decode
from petalite.data.preprocess import Preprocess
from petalite.engine.several import Several
from petalite.engine.stream import stream
from petalite.errors import PetaliteError

_BATCH = 32


class Runner(Protocol):
    """What computes logits: the plain module, an engine's graphs, or several of them."""

    @property
    def device(self) -> torch.device:
        """Where the logits appear."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, classes) of pixels (N, 3, H, W), uint8 or floating point and normalized, not synchronized."""

    def report(self) -> dict[str, Any]:
        """What was chosen and what is held, as JSON values."""


class PlainModule:
    """timm's model with each layer as its format builds it: the reference that engines are held against."""

    def __init__(self, model: nn.Module, preprocess: Preprocess, dtype: torch.dtype, device: torch.device) -> None:
        self.model, self.preprocess, self.dtype, self.device = model, preprocess, dtype, device

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """As `Runner.forward`."""
        pixels = pixels.to(self.device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = self.preprocess.normalize(pixels)
        logits: Tensor = self.model(pixels.to(self.dtype))
        return logits

    def report(self) -> dict[str, Any]:
        """Nothing is chosen here."""
        return {}


@dataclass(frozen=True)
class Info:
    """What was loaded and how it runs.

    engine: `module` (plain PyTorch) or `fused`. compute: the precision of the products, and `why` it is that one.
    scales: how inputs of 8-bit products get theirs. merged_tokens: of an image's tokens, how many are merged away in all.
    """

    checkpoint: str
    architecture: str
    format: str
    attention: str
    compute: str
    device: str
    classes: int
    image_size: tuple[int, int]
    parameters: int
    disk_bytes: int
    merged_tokens: int
    engine: str
    why: str
    scales: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "image_size": list(self.image_size)}


@dataclass(frozen=True)
class Prediction:
    """One of the most likely classes: its name, its index, and its probability (softmax)."""

    label: str
    index: int
    score: float


class Classifier:
    """A loaded variant. Made by `load`."""

    def __init__(self, runner: Runner, preprocess: Preprocess, classes: tuple[str, ...], info: Info) -> None:
        self.runner, self.preprocess, self.classes, self.info = runner, preprocess, classes, info

    @property
    def device(self) -> torch.device:
        """Where logits appear; of several GPUs the first."""
        return self.runner.device

    @property
    def model(self) -> nn.Module:
        """timm's module. Raises PetaliteError where an engine runs instead."""
        if not isinstance(self.runner, PlainModule):
            raise PetaliteError(f"the {self.info.engine} engine has no module to look into; load with engine='module'")
        return self.runner.model

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> Tensor:
        """Logits (N, classes) on the device, not synchronized: this is what is timed.

        batch: uint8 pixels (N, 3, H, W) as `preprocess` gives them, or floating point already normalized.
        """
        if batch.ndim != 4 or tuple(batch.shape[1:]) != (3, *self.info.image_size):
            height, width = self.info.image_size
            raise PetaliteError(f"a batch must be (N, 3, {height}, {width}), got {tuple(batch.shape)}")
        return self.runner.forward(batch)

    def logits(self, batch: Tensor) -> Tensor:
        """Logits (N, classes) in float32 on the CPU; `batch` as in `forward`."""
        return self.forward(batch).float().cpu()

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Logits as `logits` gives them for each batch, in order, while the next ones are read and copied to the GPU."""
        if isinstance(self.runner, Several):
            return self.runner.stream(batches)
        return stream(self.forward, batches, self.device)

    def report(self) -> dict[str, Any]:
        """What the engine has chosen and recorded so far, as JSON values: kernels by shape, graphs, memory."""
        return {**self.info.as_dict(), **self.runner.report()}

    def predict(self, images: ImageSource | Iterable[ImageSource], top_k: int = 5) -> list[list[Prediction]]:
        """The `top_k` most likely classes of each image: paths, encoded bytes, PIL images or uint8 arrays (H, W, 3).

        A single image may be given without a list. Raises ImageError for one that cannot be read.
        """
        if top_k < 1:
            raise PetaliteError(f"top_k must be at least 1, got {top_k}")
        sources: Sequence[Any] = [images] if _is_single(images) else list(images)  # type: ignore[arg-type]
        answers: list[list[Prediction]] = []
        for start in range(0, len(sources), _BATCH):
            pixels = torch.stack([self.preprocess(decode(source)) for source in sources[start : start + _BATCH]])
            answers += self.named(self.logits(pixels), top_k)
        return answers

    def named(self, logits: Tensor, top_k: int = 5) -> list[list[Prediction]]:
        """The `top_k` most likely classes for each row of logits (N, classes)."""
        scores, indices = logits.softmax(dim=-1).topk(min(top_k, logits.shape[-1]), dim=-1)
        return [
            [Prediction(self.classes[index], index, score) for index, score in zip(*row, strict=True)]
            for row in zip(indices.tolist(), scores.tolist(), strict=True)
        ]


def _is_single(images: object) -> bool:
    return isinstance(images, (str, Path, bytes)) or hasattr(images, "__array_interface__")
