"""PyTorch's own: `model.pt2`, compiled ahead of time by AOTInductor, which runs without Python as well.

What is compiled is timm's model with Petalite's attention and token merging, weights expanded to single precision. The
compiled code is for processors like this machine's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petalite.attention import use_attention
from petalite.data import Preprocess
from petalite.errors import PetaliteError
from petalite.export.targets import Array, Job, Run, as_float32
from petalite.merging import use_merging

FILE = "model.pt2"
_CPU = torch.device("cpu")


class _Whole(nn.Module):
    """A model behind its own normalization."""

    def __init__(self, model: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> logits."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        logits: Tensor = self.model((pixels.to(torch.float32) / 255 - mean) / std)
        return logits


def write(job: Job, folder: Path) -> None:
    """Write `folder/model.pt2`. Raises PetaliteError where there is no C++ compiler, or the model cannot be traced."""
    from torch._inductor import aoti_compile_and_package

    try:
        with torch.no_grad():
            aoti_compile_and_package(traced(job), package_path=str(folder / FILE))
    except Exception as error:  # the compiler's own errors are many pages
        reason = next(iter(str(error).strip().splitlines()), "no message")[:200]
        raise PetaliteError(f"AOTInductor could not compile this model ({type(error).__name__}: {reason})") from error


def traced(job: Job) -> torch.export.ExportedProgram:
    """The whole model as one graph, for any number of images up to 4,096."""
    pixels = torch.zeros(2, 3, *job.preprocess.size, dtype=torch.uint8 if job.inputs == "pixels" else torch.float32)
    model = plain_model(job)
    if job.inputs == "pixels":
        model = _Whole(model, job.preprocess).eval()
    with torch.no_grad():
        return torch.export.export(model, (pixels,), dynamic_shapes=({0: torch.export.Dim("batch", max=4096)},))


def plain_model(job: Job) -> nn.Module:
    """timm's model in float32 on the CPU, merging tokens as its plan says."""
    model: Any = job.checkpoint.skeleton()
    model.load_state_dict(job.checkpoint.plain_tensors(), assign=True)
    model = model.eval().requires_grad_(False)
    use_attention(model, "sdpa", _CPU, torch.float32)
    use_merging(model, job.checkpoint.plan.merge)
    plain: nn.Module = model
    return plain


def run(job: Job, folder: Path) -> Run:
    """The compiled model's answers."""
    from torch._inductor import aoti_load_package

    model: Any = aoti_load_package(str(folder / FILE))

    def answers(batch: Array) -> Array:
        return as_float32(model(torch.from_numpy(batch)).numpy())

    return answers


def runtime() -> str:
    """PyTorch and its version."""
    return f"AOTInductor of torch {torch.__version__}, CPU"
