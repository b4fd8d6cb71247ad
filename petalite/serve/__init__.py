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

from petalite.errors import PetaliteError

#: Module -> package of the extra `serve`.
_NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "httptools": "httptools",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
}


def serve(
    checkpoints: Sequence[str | Path], *, started: Callable[[dict[str, Any]], None] | None = None, **options: Any
) -> None:
    """Serve checkpoint folders until SIGTERM or SIGINT; the first one answers `/predict` where no model is named.

    options: the fields of `petalite.serve.settings.Settings`. started: called once, when requests are answered, with
    `{"url", "models"}`. Returns after every accepted request has been answered. Raises PetaliteError for a missing
    package, an option or a checkpoint that is wrong, and an address that is taken.
    """
    if absent := [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]:
        raise PetaliteError(f"serve needs {', '.join(absent)}: pip install 'petalite[serve]'")
    from petalite.serve.run import run
    from petalite.serve.settings import Settings

    run(Settings(checkpoints=tuple(Path(path) for path in checkpoints), **options), started)
