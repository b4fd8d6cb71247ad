"""The verb that holds studies against each other: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petalite.cli import options as o
from petalite.cli.app import app, result
from petalite.files import prepare_out


@app.command()
def compare(
    studies: Annotated[
        list[Path], typer.Argument(help="Folders of studies, from the oldest to the newest.", show_default=False)
    ],
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            help="A condition on the newest study that gives exit code 1: nf4.drop_points > 1; repeatable.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write a page into this folder.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the page that --out holds.")] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Studies in one table: the front of accuracy, latency and size, what changed, and a gate for CI.

    Example: petalite compare runs/monday runs/tuesday --fail-if "nf4-fa2.drop_points > 1" --fail-if "*.p50_ms.ratio > 1.2"
    """
    from petalite.compare import compare as compare_studies
    from petalite.compare import write_comparison
    from petalite.compare.terminal import table

    found = compare_studies(studies, fail_if=fail_if or ())
    lines = [table(studies, found["gate"]["rules"])]
    if out is not None:
        page = write_comparison(studies, prepare_out(out, resume=force or None))
        found["report"] = str(page)
        lines.append(str(page))
    result(found, as_json, "\n".join(lines))
    if not found["gate"]["passed"]:
        raise typer.Exit(1)
