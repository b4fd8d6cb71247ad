"""A checkpoint that answers: pixels in, logits or named predictions out.

classifier = load("runs/demo/checkpoints/nf4")
classifier.predict(["rose.jpg"], top_k=3)[0][0]     # Prediction(label='rose', index=73, score=0.98)
classifier.logits(pixels)                           # float32 (N, classes) on the CPU
classifier.info.compute                             # 'bf16': what was chosen
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petalite import models
from petalite.attention import use_attention
from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.data.images import ImageSource, decode
from petalite.data.preprocess import Preprocess
from petalite.device import resolve_compute, resolve_device
from petalite.errors import PetaliteError
from petalite.formats import get_format
from petalite.formats.plain import DTYPES
from petalite.merging import use_merging
from petalite.plan import POSITIONS

_BATCH = 32


@dataclass(frozen=True)
class Info:
    """What was loaded and how it runs. `merged_tokens`: of an image's tokens, how many the blocks merge away in all."""

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

    def __init__(
        self, model: nn.Module, preprocess: Preprocess, classes: tuple[str, ...], info: Info, device: torch.device
    ) -> None:
        self.model, self.preprocess, self.classes, self.info, self.device = model, preprocess, classes, info, device
        self._dtype = DTYPES[info.compute]

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> Tensor:
        """Logits (N, classes) on the device, in the compute precision; not synchronized: this is what is timed.

        batch: uint8 pixels (N, 3, H, W) as `preprocess` gives them, or floating point already normalized.
        """
        if batch.ndim != 4 or tuple(batch.shape[1:]) != (3, *self.info.image_size):
            height, width = self.info.image_size
            raise PetaliteError(f"a batch must be (N, 3, {height}, {width}), got {tuple(batch.shape)}")
        batch = batch.to(self.device, non_blocking=True)
        if batch.dtype == torch.uint8:
            batch = self.preprocess.normalize(batch)
        logits: Tensor = self.model(batch.to(self._dtype))
        return logits

    def logits(self, batch: Tensor) -> Tensor:
        """Logits (N, classes) in float32 on the CPU; `batch` as in `forward`."""
        return self.forward(batch).float().cpu()

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


def load(
    path: str | Path | Checkpoint,
    device: str = "auto",
    attention: str = "auto",
    compute: str = "auto",
    threads: int | None = None,
) -> Classifier:
    """Load a checkpoint folder of any format and make it ready to run.

    device: auto, cpu, cuda, cuda:N. attention: auto, math, sdpa, fa2, efficient, cudnn. compute: auto, fp32, fp16, bf16.
    threads: threads of a CPU's operators (PyTorch's own choice when None).
    Raises PetaliteError for a damaged checkpoint, and for a device, format, attention or compute that cannot run here.
    """
    if threads is not None:
        if threads < 1:
            raise PetaliteError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    checkpoint = path if isinstance(path, Checkpoint) else read_checkpoint(path)
    chosen_device = resolve_device(device)
    precision = resolve_compute(compute, checkpoint.plan.format, chosen_device)
    preprocess = Preprocess.from_config(checkpoint.config)
    model = assemble(checkpoint, chosen_device, DTYPES[precision])
    backend = use_attention(model, attention, chosen_device, DTYPES[precision])
    merged_tokens = use_merging(model, checkpoint.plan.merge)
    info = Info(
        checkpoint=str(checkpoint.path),
        architecture=str(checkpoint.config["architecture"]),
        format=checkpoint.plan.format,
        attention=backend.name,
        compute=precision,
        device=str(chosen_device),
        classes=len(checkpoint.classes),
        image_size=preprocess.size,
        parameters=sum(parameter.numel() for parameter in checkpoint.skeleton().parameters()),
        disk_bytes=checkpoint.disk_bytes,
        merged_tokens=merged_tokens,
    )
    return Classifier(model, preprocess, checkpoint.classes, info, chosen_device)


def assemble(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The plain timm module with each layer built by its format, everything else in `dtype`, ready for inference."""
    for name in sorted(set(checkpoint.plan.layers.values())):
        get_format(name).require(device)
    model = checkpoint.skeleton()
    rest = {
        name: checkpoint.tensors[name].to(device, dtype)
        for name in model.state_dict()
        if name in checkpoint.tensors and checkpoint.tensors[name].is_floating_point()
    }
    for name, stored in checkpoint.plan.layers.items():
        if not isinstance(model.get_submodule(name) if name != POSITIONS else None, nn.Linear):
            # a convolution or the position embedding: used as a plain tensor, whatever its format on disk
            rest[models.weight_name(name)] = checkpoint.unpacked(name).to(device, dtype)
            continue
        bias = checkpoint.tensors.get(f"{name}.bias")
        model.set_submodule(name, get_format(stored).build(checkpoint.layer(name), bias, dtype, device))
        rest.pop(f"{name}.weight", None)
        rest.pop(f"{name}.bias", None)
    missing = set(model.load_state_dict(rest, strict=False, assign=True).missing_keys)
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if left:
        raise PetaliteError(
            f"{checkpoint.path}: no tensor was given for {', '.join(left[:3])} ({len(missing)} missing)"
        )
    return model.eval().requires_grad_(False)


def _is_single(images: object) -> bool:
    return isinstance(images, (str, Path, bytes)) or hasattr(images, "__array_interface__")
