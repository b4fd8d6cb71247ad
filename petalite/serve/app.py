"""The routes: HTTP in front of `service`. The contract is in `describe.py` and, for people, at `/docs`.

app = build_app(service, page)
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

import petalite
from petalite.errors import PetaliteError
from petalite.serve import describe as d
from petalite.serve.kserve import model_metadata, server_metadata
from petalite.serve.logs import event
from petalite.serve.metrics import CONTENT_TYPE
from petalite.serve.page import Page, render_docs
from petalite.serve.refusal import Refusal
from petalite.serve.service import Service, refused

_REFUSED = d.errors(401, 404, 408, 413, 415, 422, 429, 503)


def build_app(service: Service, page: Page) -> FastAPI:
    """The application. `service` may still be loading: until it has, everything but predictions is answered."""
    app = FastAPI(
        title="Petalite",
        version=petalite.__version__,
        summary="Image classification with Vision Transformers.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_predictions(app, service)
    _add_kserve(app, service)
    _add_operations(app, service)
    _add_pages(app, page)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(Exception, _internal)
    if service.settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Server-Timing", "Retry-After"],
        )
    return app


def _add_predictions(app: FastAPI, service: Service) -> None:
    @app.post("/predict", responses={**d.PREDICTED, **_REFUSED}, openapi_extra=d.predict(service.settings.models))
    async def predict(request: Request) -> Response:
        """Classify an image: its bytes, a form with a file, or JSON with base64, as Hugging Face's clients send it."""
        return await service.answer(request, "predict", request.query_params.get("model"))


def _add_kserve(app: FastAPI, service: Service) -> None:
    name = PathParameter(
        description="A model that is served.", json_schema_extra={"enum": list(service.settings.models)}
    )

    @app.post(
        "/v2/models/{model}/infer",
        responses={**d.INFERRED, **_REFUSED},
        openapi_extra=d.infer(service.settings.max_batch),
    )
    async def infer(request: Request, model: str = name) -> Response:
        """KServe's inference protocol v2: one BYTES tensor, image, of encoded images; also its binary extension."""
        return await service.answer(request, "infer", model)

    @app.get("/v2", responses=d.answer("Name, version, extensions.", d.OBJECT))
    async def v2() -> Response:
        """What this server is."""
        return _json(server_metadata(petalite.__version__))

    @app.get("/v2/health/live", responses=d.answer("It lives.", d.FLAG))
    async def v2_live() -> Response:
        """Whether the process answers."""
        return _json({"live": True})

    @app.get("/v2/health/ready", responses={**d.answer("It takes requests.", d.FLAG), **d.errors(503)})
    async def v2_ready() -> Response:
        """Whether requests should be sent here."""
        return _ready(service)

    @app.get(
        "/v2/models/{model}", responses={**d.answer("Its inputs and outputs.", d.OBJECT), **d.errors(401, 404, 422)}
    )
    async def v2_model(request: Request, model: str = name) -> Response:
        """A model's inputs and outputs."""
        service.allow(request)
        return _json(model_metadata(service.model(model)))

    @app.get(
        "/v2/models/{model}/ready", responses={**d.answer("It takes requests.", d.FLAG), **d.errors(404, 422, 503)}
    )
    async def v2_model_ready(model: str = name) -> Response:
        """Whether a model takes requests."""
        service.model(model)
        return _ready(service)


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/health/live", responses=d.answer("It lives.", d.FLAG))
    async def live() -> Response:
        """Whether the process answers; if not, start it again."""
        return _json({"live": True})

    @app.get("/health/ready", responses={**d.answer("It takes requests.", d.FLAG), **d.errors(503)})
    async def ready() -> Response:
        """Whether requests should be sent here: not before the models are warm, not while the server stops."""
        return _ready(service)

    @app.get("/info", responses={**d.answer("Models, limits, workers.", d.OBJECT), **d.errors(401)})
    async def info(request: Request) -> Response:
        """The models that are served, what they run on, and the limits of a request."""
        service.allow(request)
        settings = service.settings
        return _json(
            {
                "name": "petalite",
                "version": petalite.__version__,
                "ready": service.ready,
                "models": [{"name": name, **service.models.get(name, {})} for name in settings.models],
                "limits": {
                    "deadline_s": settings.deadline_s,
                    "max_body_bytes": settings.max_body_bytes,
                    "max_pixels": settings.max_pixels,
                    "max_batch": settings.max_batch,
                    "max_wait_ms": settings.max_wait_ms,
                    "queue": settings.queue,
                },
                "workers": {"ready": service.pool.ready, "wanted": settings.worker_count, "pids": service.pool.pids},
            }
        )

    @app.get("/metrics", responses=d.answer("Prometheus' text format.", d.TEXT, "text/plain"))
    async def metrics() -> Response:
        """Counters and histograms for Prometheus."""
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    if service.settings.api_key is None:
        return  # without a key anybody could have checkpoints loaded; SIGHUP does the same

    @app.post("/admin/reload", responses={**d.answer("What is served now.", d.OBJECT), **d.errors(401, 422)})
    async def reload(request: Request) -> Response:
        """Read the checkpoint folders again; a damaged one is refused (422) and what is loaded serves on."""
        service.allow(request)
        try:
            await service.reload()
        except PetaliteError as error:
            raise Refusal(422, "reload_refused", str(error)) from error
        return _json({"models": list(service.models)})


def _add_pages(app: FastAPI, page: Page) -> None:
    docs: list[bytes] = []

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return Response(page.html, headers=page.headers, media_type="text/html")

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        if not docs:
            docs.append(render_docs(app.openapi()))
        return Response(docs[0], headers=page.headers, media_type="text/html")

    @app.get("/samples", include_in_schema=False)
    async def samples() -> Response:
        return _json([{"url": f"samples/{index}", **sample.about} for index, sample in enumerate(page.samples)])

    @app.get("/samples/{index}", include_in_schema=False)
    async def sample(index: str) -> Response:
        if not index.isascii() or not index.isdigit() or int(index[:6]) >= len(page.samples):
            raise Refusal(404, "not_found", "no such sample")
        found = page.samples[int(index[:6])]
        return Response(found.data, headers={"cache-control": "max-age=3600"}, media_type=found.media_type)


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value).encode(), status, media_type="application/json")


def _ready(service: Service) -> Response:
    if service.ready:
        return _json({"ready": True})
    why = "the server is stopping" if service.draining else "no worker is ready"
    raise Refusal(503, "not_ready", why, retry_after_s=5)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refused(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        response = refused(Refusal(405, "method_not_allowed", f"{request.method} is not possible here"))
        response.headers.update(error.headers or {})
        return response
    return refused(Refusal(404, "not_found", "no such page; GET /docs lists what there is"))


async def _invalid(request: Request, error: Exception) -> Response:
    return refused(Refusal(422, "invalid_request", "the address or its parameters make no sense; GET /docs"))


async def _internal(request: Request, error: Exception) -> Response:
    event("internal_error", level="error", error=f"{type(error).__name__}: {error}"[:400])
    return refused(Refusal(500, "internal", "an error of the server; its log says more"))
