"""The resume point: everything from which training goes on as if it had never stopped.

It holds the trained parameters, the best ones so far, optimizer, loss scaler, random state, the place in the data
order, and the rows of metrics.csv. Written atomically; read with `weights_only`, which runs no code.
"""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petalite.console import warn
from petalite.files import atomic, write_text

METRICS = ("epoch", "step", "lr", "train_loss", "valid_loss", "valid_top1", "seconds")


@dataclass
class Progress:
    """Where training stands. `epoch` counts finished epochs, `step` the optimizer steps of the epoch under way."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    start_top1: float = -1.0
    best_top1: float = -1.0
    best_loss: float = float("inf")
    micro_batch: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)


def save(
    path: Path,
    inputs: str,
    progress: Progress,
    trained: Mapping[str, Tensor],
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Write the resume point. `inputs` identifies what is trained on what: only the same training resumes from it."""
    state = {
        "inputs": inputs,
        "progress": asdict(progress),
        "trained": {name: tensor.detach().cpu() for name, tensor in trained.items()},
        "best": dict(best),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }
    with atomic(path) as temporary:
        torch.save(state, temporary)


def read(path: Path, inputs: str) -> dict[str, Any] | None:
    """The resume point, or None when there is none for `inputs` (a damaged or foreign one is named and passed over)."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        warn(f"the resume point {path} is damaged ({str(error).splitlines()[0][:80]}); training starts again")
        return None
    if state.get("inputs") != inputs:
        warn(f"the resume point {path} belongs to another training; training starts again")
        return None
    return state


def write_metrics(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """metrics.csv, a row an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, METRICS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
