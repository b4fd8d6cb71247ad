"""The verb that answers over HTTP: serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from petalite.cli import options as o
from petalite.cli.app import app


@app.command()
def serve(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoint folders.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    max_batch: Annotated[int, typer.Option(help="Images computed at once.")] = 8,
    max_wait_ms: Annotated[float, typer.Option(help="How long an image waits for others being decoded.")] = 2.0,
    queue: Annotated[int, typer.Option(help="Requests open at most; the next gets 429.")] = 256,
    workers: Annotated[
        int | None, typer.Option(help="Processes with a model each; default: cores, at most 4.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each worker; default: the cores shared out.", show_default=False)
    ] = None,
    deadline_s: Annotated[float, typer.Option(help="Seconds from a request to its answer, else 503.")] = 10.0,
    max_body_mb: Annotated[float, typer.Option(help="Largest body, MB.")] = 20.0,
    max_megapixels: Annotated[float, typer.Option(help="Largest image, million pixels.")] = 50.0,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="PETALITE_API_KEY", help="Key that requests need; better set in the environment."),
    ] = None,
    cors: Annotated[
        str | None,
        typer.Option(help="Origins whose pages may call this server, separated by commas.", show_default=False),
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Folder of images that the page offers.", show_default=False)
    ] = None,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log every request.")] = False,
    on: Annotated[
        str, typer.Option(help="local, or ray: workers on a Ray cluster (RAY_ADDRESS, or one started here).")
    ] = "local",
    attention: o.Attention = "auto",
    compute: o.Compute = "auto",
    engine: o.Engine = "auto",
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Answer over HTTP: POST /predict, KServe v2, metrics, and a page to drop a photo on. SIGTERM ends it gracefully.

    Example: petalite serve runs/demo/checkpoints/int8 runs/demo/checkpoints/fp32 --port 8000
    """
    from petalite.serve import logs
    from petalite.serve import serve as serve_checkpoints

    def started(facts: dict[str, Any]) -> None:
        print(json.dumps(facts) if as_json else f"{facts['url']} answers: {', '.join(facts['models'])}", flush=True)

    logs.set_quiet(quiet)
    serve_checkpoints(
        checkpoints, started=started, host=host, port=port, max_batch=max_batch, max_wait_ms=max_wait_ms, queue=queue,
        workers=workers, threads=threads, deadline_s=deadline_s, max_body_mb=max_body_mb,
        max_megapixels=max_megapixels, api_key=api_key or None, cors=tuple(o.listed(cors) or ()), samples=samples,
        log_requests=log_requests, attention=attention, compute=compute, engine=engine, device=device, on=on,
    )  # fmt: skip
