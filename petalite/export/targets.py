"""What a checkpoint can be exported to, what each target needs and can do; and what an exporter is given.

target = get_target("onnx")
target.require()                      # PetaliteError, one line, where a package is missing
target.module().write(job, folder)    # the file or folder itself
run = target.module().run(job, folder)    # float32 logits (N, classes) of what `job.inputs` says
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from petalite.checkpoint import Checkpoint
from petalite.data import Preprocess
from petalite.errors import PetaliteError, did_you_mean

#: What an exported model takes, by what of the preprocessing is inside it.
INPUTS = {
    "none": "float32 (N, 3, H, W), resized, cropped and normalized",
    "pixels": "uint8 (N, 3, H, W), resized and cropped; mean and std are inside",
    "image": "uint8 (N, any height, any width, 3), as a decoder gives it; resizing, cropping, mean and std are inside",
}
Array = NDArray[Any]
#: A batch as `Job.inputs` says -> float32 logits (N, classes).
Run = Callable[[Array], Array]


@dataclass(frozen=True)
class Job:
    """What to write. inputs: one of INPUTS. int8: multiply in 8 bits, for which the plan's activations have ranges."""

    checkpoint: Checkpoint
    inputs: str = "none"
    int8: bool = False

    @property
    def preprocess(self) -> Preprocess:
        """The checkpoint's own preprocessing."""
        return Preprocess.from_config(self.checkpoint.config)


class Exporter(Protocol):
    """What each target's module offers."""

    def write(self, job: Job, folder: Path) -> None:
        """Write into `folder`, which exists and is empty. Raises PetaliteError for what the target cannot express."""

    def run(self, job: Job, folder: Path) -> Run:
        """What was written, loaded by the target's own runtime."""

    def runtime(self) -> str:
        """That runtime's name and version."""


@dataclass(frozen=True)
class Target:
    """One target.

    home: its module in this room. needs: modules that have to be importable; install: what brings them. inputs: of
    INPUTS, those that it can be written for. int8: whether it can multiply in 8 bits. checked_on: what its `run` takes
    where that is not `Job.inputs`.
    """

    name: str
    about: str
    home: str
    needs: tuple[str, ...]
    install: str
    inputs: tuple[str, ...] = ("none", "pixels")
    int8: bool = False
    checked_on: str | None = None

    def missing(self) -> str | None:
        """What is not installed, and how to get it; None where all is there."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{self.name} needs {' and '.join(absent)}: pip install {self.install}" if absent else None

    def require(self) -> None:
        """Raise PetaliteError where something is not installed."""
        if reason := self.missing():
            raise PetaliteError(reason)

    def module(self) -> Exporter:
        """The module that writes and runs it, imported now."""
        return cast(Exporter, importlib.import_module(f"petalite.export.{self.home}"))


TARGETS = {
    target.name: target
    for target in (
        Target(
            "onnx",
            "model.onnx for ONNX Runtime and whatever else reads it",
            "onnx_file",
            ("onnx", "onnxruntime"),
            "'petalite[export]'",
            inputs=tuple(INPUTS),
            int8=True,
        ),
        Target(
            "openvino",
            "model.xml and model.bin for OpenVINO",
            "openvino_file",
            ("openvino",),
            "openvino",
            int8=True,
        ),
        Target("pt2", "model.pt2, compiled by AOTInductor for this machine's processor", "pt2_file", (), ""),
        Target("timm", "a folder that timm.create_model loads", "timm_folder", (), "", inputs=("none",)),
        Target(
            "transformers",
            "a folder that transformers' ViTForImageClassification loads",
            "transformers_folder",
            ("transformers",),
            "transformers",
            inputs=("none",),
            checked_on="image",  # its own image processor is part of what was written
        ),
    )
}


def get_target(name: str) -> Target:
    """The target of that name. Raises PetaliteError for an unknown one, with the nearest."""
    if name not in TARGETS:
        raise PetaliteError(f"unknown target '{name}'{did_you_mean(name, TARGETS)}; targets: {', '.join(TARGETS)}")
    return TARGETS[name]


def as_float32(values: Any) -> Array:
    """Whatever a runtime returned, as a float32 array."""
    return np.asarray(values, dtype=np.float32)
