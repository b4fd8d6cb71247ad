"""The server: checkpoints answer over HTTP, with batches made as requests come, and nothing accepted is lost.

    serve(["runs/demo/checkpoints/int8"], port=8000)      # POST /predict, KServe v2, a page at /; until SIGTERM

One process reads requests and answers them (`app`, `pool`); it holds no model. Worker processes decode images and run
the engine (`worker`). A worker that dies costs the requests it held, never the server.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from petalite.errors import PetaliteError, did_you_mean

PLACES = ("local", "ray")
#: Module -> package of the extra `serve`.
_NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "httptools": "httptools",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
}


def serve(
    checkpoints: Sequence[str | Path],
    *,
    on: str = "local",
    started: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> None:
    """Serve checkpoint folders until SIGTERM or SIGINT; the first one answers `/predict` where no model is named.

    on: `local`, or `ray` for workers on a Ray cluster. options: the fields of `petalite.serve.settings.Settings`.
    started: called once, when requests are answered, with `{"url", "models"}`. Returns after every accepted request has
    been answered. Raises PetaliteError for a missing package, an option or a checkpoint that is wrong, and an address
    that is taken.
    """
    if absent := [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]:
        raise PetaliteError(f"serve needs {', '.join(absent)}: pip install 'petalite[serve]'")
    if on not in PLACES:
        raise PetaliteError(f"unknown place '{on}' to run on{did_you_mean(on, PLACES)}; known: {', '.join(PLACES)}")
    from petalite.serve.settings import Settings

    if on == "ray":
        from petalite.serve.cluster import run_on_ray as run
    else:
        from petalite.serve.run import run
    run(Settings(checkpoints=tuple(Path(path) for path in checkpoints), **options), started)
