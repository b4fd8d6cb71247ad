"""Verbs that give a checkpoint to others: export, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petalite.cli import complete
from petalite.cli import options as o
from petalite.cli.app import app, result


@app.command()
def export(
    checkpoint: o.CheckpointPath,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="onnx, openvino, pt2 (AOTInductor), timm or transformers.",
            show_default=False,
            autocompletion=complete.targets,
        ),
    ],
    data: Annotated[
        str,
        typer.Option("--data", help="Images on whose test split the export is checked; see run.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("runs/export"),
    int8: Annotated[
        bool, typer.Option("--int8", help="Products of 8-bit integers: onnx, openvino. Ranges as calibrated.")
    ] = False,
    preprocess: Annotated[
        str,
        typer.Option(
            help="What is inside: none; pixels (mean and std); image (resizing and cropping too: onnx).",
            autocompletion=complete.inputs,
        ),
    ] = "none",
    images: Annotated[
        int | None, typer.Option(help="Check on as many test images; default: all.", show_default=False)
    ] = None,
    force: o.Force = False,
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a checkpoint for another runtime, run it there, and compare: exit code 1, nothing written, if they disagree.

    Example: petalite export runs/demo/checkpoints/fp32 --to onnx --data digits --preprocess pixels --out runs/onnx
    """
    from petalite.export import export as export_checkpoint
    from petalite.export.run import sentence

    found = export_checkpoint(
        checkpoint, to, out, data=data, int8=int8, preprocess=preprocess, images=images, force=force, seed=seed or 0
    )
    result(found, as_json, sentence(found))


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder, or one that export made.", show_default=False)],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    message: Annotated[str, typer.Option(help="The commit's message.")] = "Upload by petalite",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Upload a checkpoint or an export to a model hub, its card completed by what its study has measured.

    Example: petalite push runs/demo/checkpoints/nf4 someone/digits-nf4
    """
    from petalite.export.push import push as push_folder

    done = push_folder(folder, repo, private=private, message=message)
    result(done, as_json, done["url"])
