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
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from petalite.data.images import ImageSource, decode
from petalite.data.preprocess import Pixels, Preprocess
from petalite.errors import PetaliteError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: float32 (N, classes).
Logits: TypeAlias = "NDArray[np.float32]"
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


@runtime_checkable
class ArrayRunner(Protocol):
    """A runner that has no need of tensors."""

    def answers(self, pixels: NDArray[Any]) -> Logits:
        """As `Runner.forward`, of an array and as one."""


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
        from petalite.engine.module import PlainModule

        if not isinstance(self.runner, PlainModule):
            raise PetaliteError(f"the {self.info.engine} engine has no module to look into; load with engine='module'")
        return self.runner.model

    def forward(self, batch: Tensor) -> Tensor:
        """Logits (N, classes) on the device, not synchronized: this is what is timed.

        batch: uint8 pixels (N, 3, H, W) as `preprocess` gives them, or floating point already normalized.
        """
        import torch

        self._check(batch.shape)
        with torch.inference_mode():
            return self.runner.forward(batch)

    def logits(self, batch: Tensor) -> Tensor:
        """Logits (N, classes) in float32 on the CPU; `batch` as in `forward`."""
        return self.forward(batch).float().cpu()

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Logits as `logits` gives them for each batch, in order, while the next ones are read and copied to the GPU."""
        from petalite.engine.several import Several
        from petalite.engine.stream import stream

        if isinstance(self.runner, Several):
            return self.runner.stream(batches)
        return stream(self.forward, batches, self.device)

    def stream_arrays(self, batches: Iterable[Pixels]) -> Iterator[Logits]:
        """What `stream` gives, of arrays and as arrays; where the engine needs no PyTorch, neither does this."""
        if isinstance(self.runner, ArrayRunner):
            yield from map(self._answers, batches)
            return
        import torch

        for logits in self.stream(torch.from_numpy(batch) for batch in batches):
            yield logits.numpy()

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
            pixels = np.stack([self.preprocess.pixels(decode(source)) for source in sources[start : start + _BATCH]])
            answers += self.named(self._answers(pixels), top_k)
        return answers

    def named(self, logits: Tensor | Logits, top_k: int = 5) -> list[list[Prediction]]:
        """The `top_k` most likely classes for each row of logits (N, classes), which lie on the CPU; of equals the first."""
        return [
            [Prediction(self.classes[index], index, float(scores[index])) for index in most_likely(scores, top_k)]
            for scores in softmax(np.asarray(logits, np.float32))
        ]

    def _answers(self, pixels: Pixels) -> Logits:
        if isinstance(self.runner, ArrayRunner):
            self._check(pixels.shape)
            return self.runner.answers(pixels)
        import torch

        logits: Logits = self.logits(torch.from_numpy(pixels)).numpy()
        return logits

    def _check(self, shape: Sequence[int]) -> None:
        if len(shape) != 4 or tuple(shape[1:]) != (3, *self.info.image_size):
            height, width = self.info.image_size
            raise PetaliteError(f"a batch must be (N, 3, {height}, {width}), got {tuple(shape)}")


def softmax(logits: Logits) -> Logits:
    """Probabilities of each row of (N, classes)."""
    powers: Logits = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def most_likely(scores: Logits, count: int) -> list[int]:
    """The indices of the `count` largest of scores (classes,), the largest first; of equals the first."""
    count = min(count, len(scores))
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    found = np.flatnonzero(~(scores < least))  # with those that are no number, should there be any
    chosen: list[int] = found[np.argsort(-scores[found], kind="stable")][:count].tolist()
    return chosen


def _is_single(images: object) -> bool:
    return isinstance(images, (str, Path, bytes)) or hasattr(images, "__array_interface__")
