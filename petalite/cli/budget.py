"""Verbs on what may be quantized and what had better be kept: ablate, search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petalite.cli import complete
from petalite.cli import options as o
from petalite.cli.app import app, result


@app.command()
def ablate(
    checkpoint: o.CheckpointPath,
    data: o.DataPath,
    formats: Annotated[
        str,
        typer.Option(help="Formats, separated by commas; see `petalite ls formats`.", autocompletion=complete.formats),
    ] = "nf4,int8",
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    reverse: Annotated[bool, typer.Option("--reverse", help="Also quantize each block alone.")] = False,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Also keep each of these layers alone: layers, blocks, globs, separated by commas.", show_default=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the tables and charts.")] = Path("runs/ablation"),
    attention: o.Attention = "auto",
    compute: o.Compute = "auto",
    batch_size: o.Batch = 32,
    threads: o.Threads = None,
    resume: o.Resume = False,
    force: o.Force = False,
    device: o.Device = "auto",
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Which layers to keep: quantize all, all but first and last, all but each block; what is real and what is noise.

    Example: petalite ablate runs/demo/checkpoints/fp32 --data digits --formats nf4,int8 --out runs/ablation
    """
    from petalite.ablation import ablate as ablate_checkpoint
    from petalite.ablation import cost, table
    from petalite.report.figures import draw_ablation

    found = ablate_checkpoint(
        checkpoint, data, o.listed(formats) or (), split=split, out=out, reverse=reverse, layers=o.listed(layers) or (),
        device=device, attention=attention, compute=compute, batch_size=batch_size, threads=threads, seed=seed or 0,
        resume=resume, force=force,
    )  # fmt: skip
    pictures = draw_ablation(found, out / "figures")
    written = [out / "ablation_results.csv", out / "ablation.json", *(picture.light for picture in pictures)]
    result(found, as_json, "\n".join([table(found), found["sentence"], cost(found), *map(str, written)]))


@app.command()
def search(
    checkpoint: o.CheckpointPath,
    data: o.DataPath,
    max_drop: Annotated[float, typer.Option(help="Points of top-1 that may be lost.")] = 0.5,
    objective: Annotated[str, typer.Option(help="What becomes least: size, latency or throughput.")] = "size",
    formats: Annotated[
        str | None, typer.Option(help="Formats that layers may take, separated by commas.", show_default=False)
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Also merge tokens.")] = False,
    calibrate: Annotated[
        str, typer.Option(help="nearest, clip, gptq or reconstruct: how weights are rounded.")
    ] = "gptq",
    images: Annotated[int, typer.Option(help="Unlabelled training images for estimates and calibration.")] = 256,
    tries: Annotated[int, typer.Option(help="Plans that are built and measured.")] = 8,
    confidence: Annotated[float, typer.Option(help="One-sided confidence of the certificate.")] = 0.95,
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint, its plan and every try.")] = Path("runs/search"),
    resume: o.Resume = False,
    force: o.Force = False,
    device: o.Device = "auto",
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """The smallest or fastest plan within an accuracy budget: estimated, built, measured, certified.

    Chosen on the validation images, certified once on the test images. Exit code 1 when no plan keeps the budget.

    Example: petalite search runs/demo/checkpoints/fp32 --data digits --max-drop 1 --objective size --out runs/search
    """
    from petalite.budget import search as search_plan

    found = search_plan(
        checkpoint, data, out, max_drop=max_drop, objective=objective, formats=o.listed(formats) or (), merge=merge,
        images=images, calibration=calibrate, tries=tries, confidence=confidence, device=device, seed=seed or 0,
        resume=resume, force=force,
    )  # fmt: skip
    proof, chosen = found["certificate"], found["chosen"]
    lines = [
        f"chosen: {chosen['name']}, {chosen['ratio']:.2f}x smaller, {chosen['formats']}",
        f"certified: {'yes' if proof['certified'] else 'no'}: {proof['reason']}",
        found["checkpoint"],
    ]
    result(found, as_json, "\n".join(lines))
