"""Verbs that make something new: demo, run, train, and a study's report drawn again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from petalite.cli import complete
from petalite.cli import options as o
from petalite.cli.app import app, result
from petalite.errors import PetaliteError
from petalite.recipe import Recipe, demo_recipe, describe


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/demo"),
    resume: o.Resume = False,
    force: o.Force = False,
    device: o.Device = "auto",
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """The whole study in about three minutes: a small ViT on the embedded digits, five variants, the report.

    Example: petalite demo
    """
    study_of(demo_recipe().with_options({"seed": seed}), out, resume, force, device, as_json)


@app.command()
def run(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe in TOML; options override it.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/study"),
    data: Annotated[str | None, o.option("data", "--data")] = None,
    model: o.Model = None,
    pretrained: o.Pretrained = None,
    image_size: o.ImageSize = None,
    method: o.Method = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    accumulate: o.Accumulate = None,
    lr: o.LearningRate = None,
    augment: o.Augmentation = None,
    flip: o.Flip = None,
    rank: o.Rank = None,
    alpha: o.Alpha = None,
    class_weights: o.ClassWeights = None,
    checkpointing: o.Checkpointing = None,
    precision: o.Precision = None,
    save_minutes: o.SaveMinutes = None,
    variants: Annotated[
        str | None, typer.Option(help=describe("variants") + " Separated by commas.", show_default=False)
    ] = None,
    keep: o.Keep = None,
    ablation: Annotated[
        str | None, typer.Option(help=describe("ablation") + " Separated by commas.", show_default=False)
    ] = None,
    budget: Annotated[float | None, o.option("budget_points", "--budget")] = None,
    threads: o.Threads = None,
    resume: o.Resume = False,
    force: o.Force = False,
    device: o.Device = "auto",
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """A study: train, store in several formats, measure every variant, predict, report.

    Example: petalite run --data flowers102 --model vit_base_patch16_224 --epochs 6 --out runs/flowers
    """
    if recipe is None and (data is None or model is None):
        raise PetaliteError("name a recipe, or at least --data and --model; `petalite demo` needs neither")
    base = Recipe.from_toml(recipe) if recipe else Recipe()
    chosen = base.with_options(
        {
            "data": data,
            "model": model,
            "pretrained": o.truth(pretrained),
            "image_size": image_size,
            "variants": o.listed(variants),
            "keep": o.listed(keep),
            "ablation": o.listed(ablation),
            "budget_points": budget,
            "seed": seed,
            "measure.threads": threads,
            **o.training(method, epochs, batch_size, accumulate, lr, augment, flip, rank, alpha, class_weights,
                        checkpointing, precision, save_minutes),
        }
    )  # fmt: skip
    study_of(chosen, out, resume, force, device, as_json)


@app.command()
def train(
    data: o.DataPath,
    out: Annotated[Path, typer.Option(help="Folder for train/ and checkpoints/FORMAT.")],
    model: Annotated[str, typer.Option(help=describe("model"), show_default=False, autocompletion=complete.models)],
    pretrained: o.Pretrained = None,
    image_size: o.ImageSize = None,
    method: o.Method = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    accumulate: o.Accumulate = None,
    lr: o.LearningRate = None,
    augment: o.Augmentation = None,
    flip: o.Flip = None,
    rank: o.Rank = None,
    alpha: o.Alpha = None,
    class_weights: o.ClassWeights = None,
    teacher: Annotated[str | None, o.option("train.teacher", "--teacher")] = None,
    checkpointing: o.Checkpointing = None,
    precision: o.Precision = None,
    save_minutes: o.SaveMinutes = None,
    resume: o.Resume = False,
    force: o.Force = False,
    device: o.Device = "auto",
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Fine-tune a model on images: the best epoch, merged to plain fp32; or get back what quantization cost (--method qat,
    or qlora on a quantized checkpoint): the best epoch, in the same format. Several GPUs: torchrun -m petalite train …

    Example: petalite train --data flowers102 --model vit_base_patch16_224 --method lora --out runs/flowers
    Example: petalite train --data flowers102 --model runs/int3 --method qat --teacher runs/flowers/checkpoints/fp32 --out runs/back
    """
    from petalite.data import open_data
    from petalite.files import disk_bytes, prepare_out
    from petalite.training import check_start
    from petalite.training import train as train_model

    recipe = Recipe().with_options(
        {
            "data": data,
            "seed": seed,
            "train.teacher": teacher,
            **o.training(method, epochs, batch_size, accumulate, lr, augment, flip, rank, alpha, class_weights,
                        checkpointing, precision, save_minutes),
        }
    )  # fmt: skip
    images = open_data(data, recipe.seed)
    check_start(model, pretrained != o.YesNo.no, recipe.train.method, recipe.train.teacher)
    if os.environ.get("RANK", "0") == "0":
        prepare_out(out, resume=resume, force=force)
    checkpoint = train_model(
        images, model, out, recipe.train, pretrained=pretrained != o.YesNo.no, image_size=image_size,
        seed=recipe.seed, device=device,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        result(
            {"checkpoint": str(checkpoint.path), "disk_bytes": disk_bytes(checkpoint.path)},
            as_json,
            str(checkpoint.path),
        )


@app.command()
def report(
    studies: Annotated[list[Path], typer.Argument(help="Folders of studies, oldest first.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the page on several studies.")] = Path("runs/comparison"),
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw a study's report again from its results; of several studies, one page that compares them.

    Example: petalite report runs/demo
    Example: petalite report runs/monday runs/tuesday --out runs/comparison
    """
    from petalite.compare import write_comparison
    from petalite.report import write_report

    page = write_report(studies[0]) if len(studies) == 1 else write_comparison(studies, out)
    result({"report": str(page)}, as_json, str(page))


def study_of(recipe: Recipe, out: Path, resume: bool, force: bool, device: str, as_json: bool) -> None:
    from petalite.results import summary
    from petalite.study import run as run_study

    results = run_study(recipe, out, resume=resume, force=force, device=device, command=_command())
    result(results, as_json, summary(results, out))


def _command() -> list[str]:
    """What to type to repeat this study in another folder: the same words, less those about this folder's past."""
    return ["petalite", *(word for word in sys.argv[1:] if word not in ("--resume", "--force"))]
