"""`petalite serve --on ray`: the same answers from a Ray cluster, also when a replica is killed in the middle."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from petalite.engine import load
from petalite.errors import PetaliteError
from petalite.serve.cluster import _placed, application
from petalite.serve.refusal import Refusal
from petalite.serve.replicas import Engine, Replicas, digest
from petalite.serve.settings import Settings
from petalite.serve.wire import Answer, Orders
from tests.command import Petalite, petalite
from tests.tiny import tiny_checkpoint

__all__ = ["petalite"]
#: Of Ray's own, in a version that is not ours to choose.
quiet = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("served") / "tiny").path


@pytest.fixture(scope="module")
def photo() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((60, 40)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def orders(checkpoint: Path) -> Orders:
    models = {"tiny": [str(checkpoint), "runs/tiny"]}
    return Orders(models, max_batch=2, max_wait_s=0.0, max_pixels=10_000, threads=1, device="cpu", attention="auto",
                  compute="auto", engine="module")  # fmt: skip


def test_an_engine_answers_as_the_classifier_does(checkpoint: Path, photo: bytes) -> None:
    engine = Engine(orders(checkpoint), {"tiny": digest(checkpoint)}, deadline_s=10)
    (expected,) = load(checkpoint, engine="module").predict([photo], top_k=1)[0]

    async def run() -> None:
        assert (await engine.facts())["tiny"]["checkpoint"] == "runs/tiny"
        head = {"kind": "predict", "model": "tiny", "content_type": "image/png", "top_k": "1"}
        answers = await asyncio.gather(*(engine.ask(head, photo, 10.0) for _ in range(8)))
        for answer in answers:
            (found,) = json.loads(answer.body)
            assert found["label"] == expected.label
            assert found["score"] == pytest.approx(expected.score, abs=1e-4)
        assert (await engine.ask(head, b"no image", 10.0)).status == 415
        assert (await engine.ask(head, photo, -1.0)).status == 503
        await engine.check_health()

    asyncio.run(run())


def test_an_engine_that_keeps_a_request_is_unwell(
    checkpoint: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(orders(checkpoint), {"tiny": digest(checkpoint)}, deadline_s=10)
    monkeypatch.setattr(engine._worker, "take", lambda ask: None)
    monkeypatch.setattr("petalite.serve.replicas.HUNG_S", 0.0)

    async def run() -> None:
        asking = asyncio.create_task(engine.ask({}, photo, 0.0))
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="long past its deadline"):
            await engine.check_health()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await engine.check_health()

    asyncio.run(run())


def test_an_engine_refuses_what_was_not_deployed(checkpoint: Path) -> None:
    with pytest.raises(PetaliteError, match="runs/tiny has changed since it was deployed; deploy it again"):
        Engine(orders(checkpoint), {"tiny": "another"}, deadline_s=10)


@pytest.mark.parametrize(
    ("resources", "given", "expected"),
    [
        ({"CPU": 64.0}, {}, (4, 2, 0)),
        ({"CPU": 2.0}, {"workers": 2}, (2, 1, 0)),
        ({"CPU": 64.0}, {"workers": 16, "threads": 4}, (16, 4, 0)),
        ({"CPU": 32.0, "GPU": 2.0}, {}, (2, 8, 1)),
        ({"CPU": 32.0, "GPU": 8.0}, {"workers": 8}, (8, 4, 1)),
        ({"CPU": 32.0, "GPU": 2.0}, {"device": "cpu"}, (4, 2, 0)),
    ],
)
def test_the_cluster_is_shared_out(
    checkpoint: Path, resources: dict[str, float], given: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    settings, gpus = _placed(Settings(checkpoints=(checkpoint,), **given), resources)
    assert (settings.workers, settings.threads, gpus) == expected


@pytest.mark.parametrize("resources", [{"CPU": 4.0}, {"CPU": 64.0, "GPU": 2.0}])
def test_more_than_the_cluster_holds_is_one_line(checkpoint: Path, resources: dict[str, float]) -> None:
    with pytest.raises(PetaliteError, match=r"8 workers of .* do not fit: the Ray cluster has .*; lower --workers"):
        _placed(Settings(checkpoints=(checkpoint,), workers=8), resources)


@quiet
def test_replaced_engines_are_counted() -> None:
    pytest.importorskip("ray", reason="needs ray: pip install 'petalite[ray]'")
    replicas = Replicas(None)
    for running in (0, 1, 3, 2, 1, 3, 3, 4):
        replicas.count(running)
    assert (replicas.ready, replicas.restarts) == (4, 2)


@quiet
def test_what_becomes_of_a_request_whose_engine_dies_or_is_late() -> None:
    exceptions = pytest.importorskip("ray.exceptions", reason="needs ray: pip install 'petalite[ray]'")

    class Method:
        async def remote(self, head: dict[str, Any], body: bytes, left_s: float) -> Answer:
            if body == b"die":
                raise exceptions.ActorDiedError
            await asyncio.sleep(5)
            raise AssertionError("nobody waits any more")

    class Handle:
        ask = Method()

    async def refused(body: bytes) -> Refusal:
        with pytest.raises(Refusal) as caught:
            await Replicas(Handle()).ask({}, body, time.monotonic() + 0.05)
        return caught.value

    died, late = asyncio.run(refused(b"die")), asyncio.run(refused(b"wait"))
    assert (died.status, died.error_type, died.retry_after_s) == (503, "worker_lost", 1)
    assert (late.status, late.error_type) == (503, "deadline")


def test_a_builders_arguments_are_checked(checkpoint: Path) -> None:
    with pytest.raises(PetaliteError, match=r"unknown argument 'worker' \(did you mean 'workers'\?\)"):
        application({"worker": "2"})
    with pytest.raises(PetaliteError, match=r"the argument workers: .* valid integer"):
        application({"checkpoints": str(checkpoint), "workers": "two"})
    with pytest.raises(PetaliteError, match=r"config\.json is missing"):
        application({"checkpoints": str(checkpoint.parent)})


def test_places_and_packages_are_named(petalite: Petalite, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "(did you mean 'ray'?)" in petalite("serve", checkpoint, "--on", "rey").error
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = petalite("serve", checkpoint, "--on", "ray")
    assert outcome.code == 2
    assert outcome.error == "servers on a cluster need ray, which is not installed: pip install 'petalite[ray]'"


@quiet
def test_a_replica_that_is_killed_costs_its_requests_and_is_replaced(
    checkpoint: Path, photo: bytes, tmp_path: Path
) -> None:
    pytest.importorskip("ray.serve", reason="needs ray: pip install 'petalite[ray]'")
    command = [sys.executable, "-m", "petalite", "serve", str(checkpoint), "--on", "ray", "--workers", "2"]
    log = tmp_path / "stderr"
    with log.open("w") as stderr:
        server = subprocess.Popen(
            [*command, "--threads", "1", "--engine", "module", "--port", "0", "--json"],
            stdout=subprocess.PIPE, stderr=stderr, env={**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
        )  # fmt: skip
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        assert line, log.read_text()
        url = json.loads(line)["url"]
        (expected,) = load(checkpoint, engine="module").predict([photo], top_k=1)[0]
        statuses: list[int] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                status, answer = post(f"{url}/predict?top_k=1", photo)
                statuses.append(status)
                assert (answer[0]["label"] if status == 200 else answer["error_type"]) in (
                    expected.label,
                    "worker_lost",
                )

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        try:
            until(lambda: len(statuses) > 20 and ready(url) == 2)
            assert set(statuses) == {200}
            os.kill(engines(server.pid)[0], signal.SIGKILL)
            until(lambda: b"petalite_worker_restarts 1.0" in get(f"{url}/metrics"))
            before = len(statuses)
            until(lambda: len(statuses) > before + 20)
        finally:
            done.set()
            for thread in asking:
                thread.join()
        assert set(statuses) <= {200, 503}
        assert statuses.count(503) <= 8
        assert set(statuses[before:]) == {200}
        assert json.loads(get(f"{url}/info"))["workers"]["ready"] == 2
    finally:
        server.terminate()
        server.stdout.close()
        code = server.wait(30)
    assert code == 0, log.read_text()
    # Ray has a line of its own to say about what was killed
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [event["event"] for event in events] == ["start", "ready", "draining", "stopped"]
    assert events[-1]["accepted"] == events[-1]["answered"] == len(statuses)


def engines(pid: int) -> list[int]:
    """The processes of the engines that were started below a process."""
    import psutil

    below = psutil.Process(pid).children(recursive=True)
    return sorted(process.pid for process in below if "petalite:Engine" in " ".join(process.cmdline()))


def ready(url: str) -> int:
    return int(json.loads(get(f"{url}/info"))["workers"]["ready"])


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        body: bytes = response.read()
    return body


def post(url: str, body: bytes) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def until(condition: Any) -> None:
    """Wait, at most half a minute."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
