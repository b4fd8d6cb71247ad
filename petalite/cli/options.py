"""The command line's options and how their texts become values; their help texts are the recipe's own."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from petalite import console
from petalite.cli import complete
from petalite.errors import PetaliteError
from petalite.recipe import describe


class YesNo(StrEnum):
    """A choice written as a word."""

    yes = "yes"
    no = "no"


def _quiet(value: bool) -> bool:
    console.set_quiet(value)
    return value


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=_quiet, help="No progress, no notes.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", autocompletion=complete.devices)]
Attention = Annotated[
    str,
    typer.Option(
        help="auto, or one of `petalite ls attention`: math, sdpa, fa2, …, petalite (the fused engine's own).",
        autocompletion=complete.attention,
    ),
]
Compute = Annotated[
    str,
    typer.Option(
        help="auto, fp32, bf16, fp16, int8 or fp8: the precision of the products.", autocompletion=complete.computes
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="auto, fused (NVIDIA GPUs), openvino (CPUs) or module (plain PyTorch, as formats build it).",
        autocompletion=complete.engines,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what --out holds.")]
Force = Annotated[bool, typer.Option("--force", help="Start again, deleting what --out holds.")]
Batch = Annotated[int, typer.Option(help="Images a forward pass.")]
Threads = Annotated[int | None, typer.Option(help="Cores that work, on a CPU; default: all that this process may use.")]
CheckpointPath = Annotated[Path, typer.Argument(help="A checkpoint folder.", show_default=False)]
DataPath = Annotated[
    str, typer.Option("--data", help=describe("data"), show_default=False, autocompletion=complete.data)
]


def option(key: str, *names: str, completed: complete.Complete | None = None) -> Any:
    """An option that overrides a recipe's field; its help is the recipe's own."""
    return typer.Option(*names, help=describe(key), show_default=False, autocompletion=completed)


Seed = Annotated[int | None, option("seed", "--seed")]
Model = Annotated[str | None, option("model", "--model", completed=complete.models)]
Pretrained = Annotated[YesNo | None, option("pretrained", "--pretrained")]
ImageSize = Annotated[int | None, option("image_size", "--image-size")]
Method = Annotated[str | None, option("train.method", "--method")]
Epochs = Annotated[int | None, option("train.epochs", "--epochs")]
BatchSize = Annotated[int | None, option("train.batch_size", "--batch-size")]
Accumulate = Annotated[int | None, option("train.accumulate", "--accumulate")]
LearningRate = Annotated[float | None, option("train.lr", "--lr")]
Augmentation = Annotated[str | None, option("train.augment", "--augment")]
Flip = Annotated[YesNo | None, option("train.flip", "--flip")]
Rank = Annotated[int | None, option("train.rank", "--rank")]
Alpha = Annotated[int | None, option("train.alpha", "--alpha")]
ClassWeights = Annotated[YesNo | None, option("train.class_weights", "--class-weights")]
Checkpointing = Annotated[YesNo | None, option("train.checkpointing", "--checkpointing")]
Precision = Annotated[str | None, option("train.precision", "--precision")]
SaveMinutes = Annotated[float | None, option("train.save_minutes", "--save-minutes")]
Keep = Annotated[str | None, typer.Option(help=describe("keep") + " Separated by commas.", show_default=False)]


def training(*values: Any) -> dict[str, Any]:
    """The training options, in the order of the verbs' parameters, as fields of the recipe."""
    names = ("method", "epochs", "batch_size", "accumulate", "lr", "augment", "flip", "rank", "alpha", "class_weights",
             "checkpointing", "precision", "save_minutes")  # fmt: skip
    return {f"train.{name}": truth(value) for name, value in zip(names, values, strict=True)}


def truth(value: Any) -> Any:
    """yes and no as booleans; anything else, None too, as it is."""
    return value == YesNo.yes if isinstance(value, YesNo) else value


def listed(text: str | None) -> list[str] | None:
    """Words separated by commas."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas. Raises PetaliteError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise PetaliteError(f"'{text}' must be whole numbers separated by commas, e.g. 1,8,32") from None
