"""What the loop trains: a model, the parameters of it that learn and how fast, and the checkpoint that it becomes.

student = student_of(start, recipe, device)       # by the start: plain weights, or a quantized checkpoint
student.model(pixels)
tensors, plan = student.finished(best)            # as they are written
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from petalite.checkpoint import Checkpoint
from petalite.plan import Plan
from petalite.recipe import TrainRecipe
from petalite.training.methods import PlainStudent
from petalite.training.recovery import QuantizedStudent


class Student(Protocol):
    """`model` is on its device; what is trained of it requires gradients, in float32."""

    model: nn.Module
    #: Whether the start is a result as well, so that training never returns something worse on the validation images.
    start_counts: bool

    def groups(self) -> list[dict[str, Any]]:
        """AdamW's parameter groups; `rate` multiplies the learning rate."""
        ...

    def settle(self) -> None:
        """After each optimizer step."""
        ...

    def evaluate(self) -> None:
        """Make the model ready for validation."""
        ...

    def finished(self, best: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Plan]:
        """Tensors and plan of the checkpoint, with the `best` values of the trained parameters."""
        ...


def student_of(start: Checkpoint, recipe: TrainRecipe, device: torch.device) -> Student:
    """The student that `start` and `recipe.method` ask for, on `device`."""
    if start.packed:
        return QuantizedStudent(start, recipe, device)
    return PlainStudent(start, recipe, device)
