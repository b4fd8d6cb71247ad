"""`petalite serve --on ray`: the same server on a Ray cluster, with Ray Serve. Also a builder for Ray's own commands.

    ray start --head                                   # or RAY_ADDRESS=…; without a cluster one is started here
    petalite serve runs/int8 --on ray --workers 8
    serve run petalite.serve.cluster:application checkpoints=/shared/int8 workers=8

`--workers` is the number of engines, replicas that Ray places on the cluster's machines and replaces when they die. The
checkpoints have to lie where every node sees them under the same path.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import fields, replace
from typing import Any

from petalite.errors import PetaliteError, did_you_mean
from petalite.prediction.cluster import CPU_CORES, Shape, connected
from petalite.prediction.extras import needed
from petalite.serve.logs import event
from petalite.serve.model import check
from petalite.serve.page import Page
from petalite.serve.replicas import ENGINE, NO_RELOAD, Engine, Front, digest
from petalite.serve.run import LAME_DUCK_S, listen, orders
from petalite.serve.settings import MOST_WORKERS, Settings

#: The application's name on the cluster: serving again replaces what is served under it.
NAME = "petalite"
_WHAT = "servers on a cluster"
#: A batch under way and a batch that is decoded, as with a worker of this machine.
_WINDOW_BATCHES = 2


def application(arguments: Mapping[str, Any]) -> Any:
    """What `serve run`, `serve deploy` and their configuration files build: a ray.serve.Application.

    arguments: `checkpoints`, separated by commas, and the fields of `Settings`; host and port are Ray's. Where they do not
    say: one engine (`workers`) of two cores (`threads`), each with a GPU where `device` is cuda. Raises PetaliteError.
    """
    known = [field.name for field in fields(Settings) if field.name not in ("host", "port")]
    for name in arguments:
        if name not in known:
            raise PetaliteError(f"unknown argument '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}")
    values = {"workers": 1, "threads": CPU_CORES, **arguments}
    for name in ("checkpoints", "cors"):
        if isinstance(values.get(name), str):
            values[name] = tuple(filter(None, values[name].split(",")))
    return bound(_settings(values), gpus=int(str(values.get("device", "auto")).startswith("cuda")))


def bound(settings: Settings, gpus: int) -> Any:
    """The application: the front, and `settings.workers` engines of `settings.threads` cores and so many GPUs."""
    serve = needed("ray.serve", "ray", _WHAT)
    folders = {name: path.resolve() for name, path in settings.models.items()}
    Page.read(settings.samples)  # what is wrong with it is said here, not in a replica's log
    models = {name: [str(folder), str(settings.models[name])] for name, folder in folders.items()}
    for name, folder in folders.items():
        check(folder, str(settings.models[name]))
    digests = {name: digest(folder) for name, folder in folders.items()}
    grace_s = settings.deadline_s + 5
    engines = serve.deployment(
        Engine,
        name=ENGINE,
        num_replicas=settings.worker_count,
        ray_actor_options={"num_cpus": settings.worker_threads, "num_gpus": gpus},
        max_ongoing_requests=_WINDOW_BATCHES * settings.max_batch,
        graceful_shutdown_timeout_s=grace_s,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2,
    )
    front = serve.deployment(
        serve.ingress()(Front),
        name="Front",
        ray_actor_options={"num_cpus": 0},
        # more than the queue holds: it is the front that refuses, with the contract's 429
        max_ongoing_requests=2 * settings.queue + 64,
        graceful_shutdown_timeout_s=grace_s,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2,
    )
    # the folder that is meant, wherever the front runs
    placed = replace(settings, checkpoints=tuple(folders.values()))
    return front.bind(placed, engines.bind(replace(orders(settings), models=models), digests, settings.deadline_s))


def run_on_ray(settings: Settings, started: Callable[[dict[str, Any]], None] | None) -> None:
    """Deploy, wait for SIGTERM or SIGINT, and take the application away when it has answered what it accepted.

    Raises PetaliteError where Ray is missing, the cluster too small, or a checkpoint cannot be served.
    """
    ray = needed("ray", "ray", _WHAT)
    serve = needed("ray.serve", "ray", _WHAT)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    stop = threading.Event()
    with redirect_stdout(sys.stderr), connected(ray), _explained():
        settings, gpus = _placed(settings, ray.cluster_resources())
        if not settings.port:
            with listen(settings.host, 0) as sock:
                settings = replace(settings, port=sock.getsockname()[1])
        url = (
            f"http://[{settings.host}]:{settings.port}"
            if ":" in settings.host
            else f"http://{settings.host}:{settings.port}"
        )
        event("start", url=url, models={name: str(path) for name, path in settings.models.items()}, on="ray",
              workers=settings.worker_count, cores=settings.worker_threads, gpus=gpus)  # fmt: skip
        serve.start(http_options={"host": settings.host, "port": settings.port})
        try:
            try:
                front = serve.run(bound(settings, gpus), name=NAME, logging_config={"enable_access_log": False})
            except RuntimeError as error:
                raise PetaliteError(_why(serve, error)) from error
            signal.signal(signal.SIGHUP, lambda *_: event("reload_refused", level="error", error=NO_RELOAD))
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
            _wait_until_ready(url, settings)
            event("ready", url=url)
            if started is not None:
                with redirect_stdout(sys.__stdout__):
                    started({"url": url, "models": list(settings.models)})
            while not stop.wait(1.0):  # a wait without end would keep the signal out
                pass
            event("draining", open=front.drain.remote().result())
            time.sleep(LAME_DUCK_S)
            counts = front.counts.remote().result()
        finally:
            with contextlib.suppress(Exception):  # of Ray, which may be what failed; that is what is told
                serve.delete(NAME)
        event("stopped", **counts)


def _settings(values: Mapping[str, Any]) -> Settings:
    """Settings out of texts, as command lines and configuration files have them. Raises PetaliteError."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Settings).validate_python(dict(values))
    except ValidationError as error:
        found = error.errors()[0]
        raise PetaliteError(f"the argument {'.'.join(map(str, found['loc']))}: {found['msg']}") from error


def _placed(settings: Settings, resources: dict[str, float]) -> tuple[Settings, int]:
    """Settings with as many engines and cores as the cluster has room for, at most four unless asked, and an engine's GPUs.

    Raises PetaliteError where more are asked for than there is room.
    """
    cores = int(resources.get("CPU", 0))
    shape = Shape.of(resources, settings.device, settings.threads)
    workers = settings.workers or min(MOST_WORKERS, shape.engines)
    threads = settings.threads or max(1, min(shape.cores, cores // workers))
    if workers * threads > cores or (shape.gpus and workers > shape.engines):
        has = f"{cores} cores" + (f" and {shape.engines} GPUs" if shape.gpus else "")
        raise PetaliteError(
            f"{workers} workers of {threads} cores do not fit: the Ray cluster has {has}; lower --workers or --threads"
        )
    return replace(settings, workers=workers, threads=threads), shape.gpus


def _wait_until_ready(url: str, settings: Settings) -> None:
    """Raises PetaliteError where another server answers at the address, or none: Ray listens where it did before."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError, ValueError),
            urllib.request.urlopen(f"{url}/health/ready", timeout=5) as response,
        ):
            if json.load(response) == {"ready": True}:
                return
        time.sleep(0.2)
    raise PetaliteError(
        f"nothing answers at {url}: Ray listens on its head node and where it runs workers, and goes on with the address "
        "that it was first started with; give that one, or end Ray Serve with `serve shutdown`"
    )


def _why(serve: Any, error: RuntimeError) -> str:
    """Why it could not be deployed, in one line: what a replica raised comes as a text with its traceback."""
    found = serve.status().applications.get(NAME)
    texts = [deployment.message for deployment in found.deployments.values()] if found else []
    lines = [line.strip() for text in (str(error), *texts) for line in text.splitlines() if line.strip()]
    own = next((line for line in lines if line.startswith("petalite.errors.PetaliteError: ")), "")
    return own.partition(": ")[2] or f"Ray Serve failed: {lines[-1] if lines else type(error).__name__}"


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Ray's errors as one line."""
    try:
        yield
    except PetaliteError:
        raise
    except Exception as error:  # Ray's own, of many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PetaliteError(f"Ray Serve failed: {lines[-1].strip()}") from error
