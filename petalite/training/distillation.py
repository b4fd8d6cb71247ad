"""A teacher: another checkpoint whose answers on the same pixels are learned as well as the labels.

    teacher = Teacher(read_checkpoint("runs/flowers/checkpoints/fp32"), student, device)
    loss = teacher.loss(pixels, logits, plain_loss)

The teacher says how likely every class is, which tells a model that lost something to quantization more than the label.

Source: Hinton et al., "Distilling the knowledge in a neural network", 2015 (arXiv:1503.02531).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from petalite.attention import use_attention
from petalite.checkpoint import Checkpoint
from petalite.data import Preprocess
from petalite.errors import PetaliteError
from petalite.merging import use_merging

#: Both softmaxes are taken of logits divided by this.
TEMPERATURE = 1.0
#: The share of the teacher in the loss; the rest is the labels'.
SHARE = 0.9


class Teacher:
    """A checkpoint that answers, on `device`, in the precision of the autocast around it."""

    def __init__(self, checkpoint: Checkpoint, student: Checkpoint, device: torch.device) -> None:
        self.preprocess = Preprocess.from_config(checkpoint.config)
        self.checkpoint = checkpoint
        _check(checkpoint, student)
        model: Any = checkpoint.skeleton()
        model.load_state_dict(checkpoint.plain_tensors(), assign=True)
        model.to(device).eval().requires_grad_(False)
        if checkpoint.plan.merge:
            use_attention(model, "sdpa", device, torch.float32)
            use_merging(model, checkpoint.plan.merge)
        self.model = model

    def loss(self, pixels: Tensor, logits: Tensor, labels_loss: Tensor, dtype: torch.dtype) -> Tensor:
        """The mixed loss, summed over images: pixels uint8 (n, 3, H, W), the student's logits (n, classes) for them."""
        with torch.no_grad(), torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
            answers = self.model(self.preprocess.normalize(pixels)).float()
        divergence = F.kl_div(
            F.log_softmax(logits.float() / TEMPERATURE, dim=-1),
            F.log_softmax(answers / TEMPERATURE, dim=-1),
            reduction="sum",
            log_target=True,
        )
        return SHARE * TEMPERATURE**2 * divergence + (1 - SHARE) * labels_loss


def _check(teacher: Checkpoint, student: Checkpoint) -> None:
    if teacher.classes != student.classes:
        raise PetaliteError(
            f"the teacher {teacher.path} knows {len(teacher.classes)} classes, the student {len(student.classes)}"
            + (", but others" if len(teacher.classes) == len(student.classes) else "")
            + "; both have to know the same"
        )
    sizes = [Preprocess.from_config(checkpoint.config).size for checkpoint in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise PetaliteError(
            f"the teacher {teacher.path} takes images of {sizes[0][0]} x {sizes[0][1]} pixels, the student of "
            f"{sizes[1][0]} x {sizes[1][1]}; both see the same"
        )
