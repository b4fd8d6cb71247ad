"""Verbs about this machine and its images: doctor, ls, data check, data fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petalite.cli import complete
from petalite.cli import options as o
from petalite.cli.app import app, data_app, result
from petalite.errors import PetaliteError, did_you_mean
from petalite.recipe import describe


@app.command()
def doctor(
    checkpoint: Annotated[Path | None, typer.Argument(help="Also check this checkpoint.", show_default=False)] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """What this machine runs: versions, device, formats, attention, compute; text to paste into an issue.

    With a checkpoint also whether it can be deployed here (hashes, plan, preprocessing, attention, GPU, an answer); exit
    code 1 if not.

    Example: petalite doctor runs/demo/checkpoints/int8
    """
    from petalite.doctor import diagnose, render

    found = diagnose(checkpoint)
    result(found, as_json, render(found))
    if not found.get("checkpoint", {}).get("ok", True):
        raise typer.Exit(1)


@app.command(name="ls")
def list_known(
    kind: Annotated[
        str,
        typer.Argument(
            help="formats, attention, compute, engines, models, recipes or targets (of export).",
            show_default=False,
            autocompletion=complete.kinds,
        ),
    ],
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """What there is, and what of it runs on this machine.

    Example: petalite ls formats
    """
    from petalite.cli.listings import LISTINGS
    from petalite.doctor import listing
    from petalite.doctor.catalogue import KINDS

    known = (*KINDS, *LISTINGS)
    if kind not in known:
        raise PetaliteError(f"unknown kind '{kind}'{did_you_mean(kind, known)}; kinds: {', '.join(known)}")
    rows = LISTINGS[kind](device) if kind in LISTINGS else listing(kind, device)
    width = max(len(row["name"]) for row in rows)
    result(rows, as_json, "\n".join(f"{row['name']:{width}}  {row['about']}" for row in rows))


@data_app.command(name="check")
def data_check(
    folder: Annotated[str, typer.Argument(help=describe("data"), show_default=False)],
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Unreadable files, copies across splits, class balance, sizes, fingerprint. Exit code 1 if files are unreadable.

    Example: petalite data check flowers102
    """
    from petalite.data import check_data, open_data

    found = check_data(open_data(folder, seed or 0))
    result(found.as_dict(), as_json, "\n".join(found.lines()))
    if found.unreadable:
        raise typer.Exit(1)


@data_app.command(name="fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="flowers102.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("flowers102"),
    source: Annotated[str, typer.Option(help="official or kaggle.")] = "official",
    mirror: Annotated[
        str | None, typer.Option(help="Another address for the official archives.", show_default=False)
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Download a data set into train/, valid/ and test/; a download that was cut off goes on.

    Example: petalite data fetch flowers102 --out flowers102
    """
    from petalite.data.fetch import fetch

    folder = fetch(name, out, source=source, mirror=mirror)
    result({"data": str(folder)}, as_json, str(folder))
