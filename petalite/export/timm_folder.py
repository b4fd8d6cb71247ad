"""timm: a plain folder in its hub layout, which `timm.create_model("local-dir:FOLDER", pretrained=True)` loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from petalite.checkpoint import WEIGHTS, Checkpoint
from petalite.errors import PetaliteError
from petalite.export.targets import Array, Job, Run, as_float32
from petalite.files import write_json


def write(job: Job, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`. Raises PetaliteError for a plan that merges tokens."""
    from safetensors.torch import save_file

    refuse_merging(job.checkpoint, "timm")
    kept = {name: tensor.contiguous() for name, tensor in plain(job.checkpoint).items()}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / "config.json", plain_config(job.checkpoint.config))


def plain(checkpoint: Checkpoint) -> Mapping[str, torch.Tensor]:
    """Every tensor as it stands, or in float32 where any layer is packed."""
    return checkpoint.plain_tensors() if checkpoint.packed else checkpoint.tensors


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration without what described its quantization."""
    return {key: value for key, value in config.items() if key not in ("quantization_config", "dtype")}


def refuse_merging(checkpoint: Checkpoint, target: str) -> None:
    """Raise PetaliteError for a checkpoint that merges tokens: another library's model would not."""
    if any(checkpoint.plan.merge):
        raise PetaliteError(
            f"{checkpoint.path} merges tokens, which {target}'s model does not; export to onnx or pt2 instead"
        )


def run(job: Job, folder: Path) -> Run:
    """timm's model, in float32 on the CPU."""
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).float().eval()

    def answers(batch: Array) -> Array:
        with torch.inference_mode():
            return as_float32(model(torch.from_numpy(batch)).numpy())

    return answers


def runtime() -> str:
    """timm and its version."""
    import timm

    return f"timm {timm.__version__}, CPU"
