"""The HTTP contract at the door: what is let in, what is refused with which status, what is told about it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from petalite.serve.settings import Settings
from petalite.serve.wire import Answer
from tests.serve.asgi import PREDICTIONS, Application, FakePool, Response

JPEG = {"content-type": "image/jpeg"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "a"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


def error(response: Response, status: int, error_type: str) -> str:
    """The one line of an error of the contract."""
    assert response.status == status, response.body
    value = response.json()
    assert set(value) == {"error", "error_type"}
    assert value["error_type"] == error_type
    assert response.headers["content-type"] == "application/json"
    text: str = value["error"]
    assert text and "\n" not in text
    return text


def test_an_image_goes_to_a_worker_as_it_came_and_the_answer_comes_back(folder: Path) -> None:
    app = Application(folder)
    response = app("POST", "/predict?top_k=3", b"image", JPEG)
    assert (response.status, response.body) == (200, PREDICTIONS)
    assert app.pool.asked == [({"kind": "predict", "model": "a", "content_type": "image/jpeg", "top_k": "3"}, b"image")]
    assert response.headers["server-timing"] == 'queue;dur=3.000, decode;dur=1.000, model;dur=3.000, batch;desc="2"'
    assert "access-control-allow-origin" not in response.headers


def test_a_body_in_pieces_is_put_together(folder: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"im"
        yield b"age"

    app = Application(folder)
    assert app("POST", "/predict", pieces(), JPEG).status == 200
    assert app.pool.asked[0][1] == b"image"


def test_a_body_is_refused_by_its_stated_and_by_its_true_size(folder: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 500

    app = Application(folder, max_body_mb=0.001)
    assert "larger than 0.001 MB" in error(app("POST", "/predict", b"x" * 1001, JPEG), 413, "body_too_large")
    error(app("POST", "/predict", endless(), JPEG), 413, "body_too_large")
    assert app("POST", "/predict", b"x" * 1000, JPEG).status == 200
    assert app.service.open == 0
    assert len(app.pool.asked) == 1


def test_a_slow_body_ends_with_the_deadline(folder: Path) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(30)

    app = Application(folder, deadline_s=0.05)
    error(app("POST", "/predict", slow(), JPEG), 408, "slow_body")
    assert app.service.open == 0


def test_what_the_queue_does_not_hold_is_refused_at_once(folder: Path) -> None:
    async def run() -> None:
        gate = asyncio.Event()
        app = Application(folder, FakePool(gate=gate), queue=2)
        waiting = [asyncio.ensure_future(app.call("POST", "/predict", b"image", JPEG)) for _ in range(2)]
        await asyncio.sleep(0.01)
        refused = await app.call("POST", "/predict", b"image", JPEG)
        error(refused, 429, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert b"petalite_queue_requests 2.0" in app.metrics.text()
        gate.set()
        assert [response.status for response in await asyncio.gather(*waiting)] == [200, 200]
        assert (await app.call("POST", "/predict", b"image", JPEG)).status == 200
        assert app.service.open == 0
        assert (app.service.accepted, app.service.answered) == (3, 3)

    asyncio.run(run())


def test_a_request_that_is_not_answered_in_time_is_told_so(folder: Path) -> None:
    async def run() -> None:
        app = Application(folder, FakePool(gate=asyncio.Event()), deadline_s=0.05)
        response = await app.call("POST", "/predict", b"image", JPEG)
        error(response, 503, "deadline")
        assert response.headers["retry-after"] == "1"

    asyncio.run(run())


def test_readiness_comes_with_the_workers_and_goes_with_the_drain(folder: Path) -> None:
    loading = Application(folder, FakePool(models={}, ready=0))
    assert loading("GET", "/health/live").json() == {"live": True}
    for path in ("/health/ready", "/v2/health/ready", "/v2/models/a/ready"):
        error(loading("GET", path), 503, "not_ready")
    error(loading("POST", "/predict", b"image", JPEG), 503, "not_ready")
    assert loading("GET", "/info").json()["ready"] is False
    app = Application(folder)
    for path in ("/health/ready", "/v2/health/ready", "/v2/models/a/ready"):
        assert app("GET", path).json() == {"ready": True}
    app.service.draining = True
    error(app("GET", "/health/ready"), 503, "not_ready")
    assert app("GET", "/health/live").status == 200
    assert app("POST", "/predict", b"image", JPEG).status == 200  # what still comes is answered


def test_an_api_key_guards_what_costs_and_what_tells(folder: Path) -> None:
    app = Application(folder, api_key="open sesame")
    guarded = [("POST", "/predict"), ("POST", "/v2/models/a/infer"), ("GET", "/info"), ("GET", "/v2/models/a")]
    for method, path in [*guarded, ("POST", "/admin/reload")]:
        refused = app(method, path, b"image" if method == "POST" else b"")
        error(refused, 401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
    for wrong in ({"x-api-key": "open sesam"}, {"authorization": "Bearer é"}, {"authorization": "Basic open sesame"}):
        error(app("POST", "/predict", b"image", wrong), 401, "unauthorized")
    for right in ({"x-api-key": "open sesame"}, {"authorization": "Bearer open sesame"}):
        for method, path in guarded:
            assert app(method, path, b"image" if method == "POST" else b"", right).status == 200
    for path in ("/", "/docs", "/openapi.json", "/health/ready", "/metrics", "/samples"):
        assert app("GET", path).status == 200
    assert not any(b"sesame" in app("GET", path).body for path in ("/", "/openapi.json"))


def test_reloading_over_http_needs_a_key(folder: Path) -> None:
    error(Application(folder)("POST", "/admin/reload"), 404, "not_found")
    assert "/admin/reload" not in Application(folder)("GET", "/openapi.json").json()["paths"]


def test_a_model_is_named_in_the_address(folder: Path) -> None:
    app = Application(folder)
    assert app("POST", "/predict?model=a", b"image", JPEG).status == 200
    text = error(app("POST", "/predict?model=b", b"image", JPEG), 404, "unknown_model")
    assert text == "no model 'b'; served: a"
    error(app("POST", "/v2/models/b/infer", b"{}"), 404, "unknown_model")
    error(app("GET", "/v2/models/b"), 404, "unknown_model")
    assert app("GET", "/v2/models/a").json()["inputs"][0] == {"name": "image", "datatype": "BYTES", "shape": [-1]}
    assert app("GET", "/v2").json()["name"] == "petalite"


def test_kserve_requests_carry_their_json_length_and_get_one_back(folder: Path) -> None:
    app = Application(folder, FakePool(answer=Answer(1, 200, b"{}binary", 1, json_bytes=2)))
    response = app("POST", "/v2/models/a/infer", b"{}xx", {"Inference-Header-Content-Length": "2"})
    assert app.pool.asked == [({"kind": "infer", "model": "a", "json_bytes": "2"}, b"{}xx")]
    assert response.headers["inference-header-content-length"] == "2"
    assert response.headers["content-type"] == "application/octet-stream"


def test_wrong_addresses_and_methods_are_errors_of_the_contract(folder: Path) -> None:
    app = Application(folder)
    error(app("GET", "/nothing"), 404, "not_found")
    error(app("GET", "/samples/../../etc/passwd"), 404, "not_found")
    error(app("GET", "/samples/99999999999999999999"), 404, "not_found")
    wrong = app("GET", "/predict")
    error(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_pages_of_other_origins_are_let_in_only_where_asked_for(folder: Path) -> None:
    origin = {"origin": "https://example.org", **JPEG}
    response = Application(folder, cors=("https://example.org",))("POST", "/predict", b"image", origin)
    assert response.headers["access-control-allow-origin"] == "https://example.org"
    other = Application(folder, cors=("https://else.org",))("POST", "/predict", b"image", origin)
    assert "access-control-allow-origin" not in other.headers


def test_metrics_count_and_time_what_was_answered(folder: Path) -> None:
    app = Application(folder)
    app("POST", "/predict", b"image", JPEG)
    app("POST", "/predict?model=b", b"image", JPEG)
    text = app("GET", "/metrics").body.decode()
    for line in (
        'petalite_requests_total{endpoint="predict",status="200"} 1.0',
        'petalite_requests_total{endpoint="predict",status="404"} 1.0',
        "petalite_decode_seconds_sum 0.001",
        "petalite_queue_seconds_sum 0.003",
        "petalite_inference_seconds_sum 0.003",
        "petalite_batch_images_sum 2.0",
        "petalite_queue_limit 256.0",
        "petalite_workers_ready 1.0",
    ):
        assert line in text.splitlines()


def test_failures_are_logged_as_json_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = Application(folder, FakePool(answer=Answer(1, 500, b"{}")))
    app("POST", "/predict", b"image", JPEG)
    (line,) = capsys.readouterr().err.splitlines()
    logged = json.loads(line)
    assert (logged["event"], logged["level"], logged["status"]) == ("request", "error", 500)
    assert app("GET", "/health/live").status == 200
    assert capsys.readouterr().err == ""


def test_the_document_names_every_route_and_its_errors(folder: Path) -> None:
    document = Application(folder, api_key="open sesame")("GET", "/openapi.json").json()
    assert {"/predict", "/v2/models/{model}/infer", "/health/ready", "/metrics", "/admin/reload"} <= set(
        document["paths"]
    )
    answers: dict[str, Any] = document["paths"]["/predict"]["post"]["responses"]
    assert {"200", "413", "415", "422", "429", "503"} <= set(answers)
    assert "/predict" in Application(folder)("GET", "/docs").body.decode()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"queue": 0}, "--queue must be between 1 and"),
        ({"max_batch": -1}, "--max-batch must be between"),
        ({"deadline_s": 0.0}, "--deadline-s must be above 0"),
        ({"max_body_mb": float("nan")}, "--max-body-mb must be above 0"),
        ({"max_wait_ms": -1.0}, "--max-wait-ms must be between 0 and"),
        ({"port": 70_000}, "--port must be between"),
        ({"engine": "openvin"}, "unknown engine 'openvin'"),
        ({"api_key": "short"}, "at least 8 characters"),
        ({"samples": Path("nowhere")}, "nowhere is not a folder"),
    ],
)
def test_settings_that_make_no_sense_are_refused(folder: Path, settings: dict[str, Any], complaint: str) -> None:
    from petalite.errors import PetaliteError

    with pytest.raises(PetaliteError, match=complaint):
        Settings(checkpoints=(folder,), **settings)
