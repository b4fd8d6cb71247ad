"""`petalite serve` for real: two tiny checkpoints, one worker process, clients that people use, a browser."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from petalite.engine import load
from tests.command import Petalite, petalite  # noqa: F401 (a fixture)
from tests.serve.browser import Browser, chromium
from tests.tiny import CLASSES, tiny_checkpoint


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("served")
    return [tiny_checkpoint(root / name, seed).path for seed, name in enumerate(("one", "two"))]


@pytest.fixture(scope="module")
def url(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server. At the end it is told to stop, answers what it holds, and exits with 0."""
    log = tmp_path_factory.mktemp("log") / "stderr"
    command = [sys.executable, "-m", "petalite", "serve", *map(str, folders), "--port", "0", "--workers", "1", "--json"]
    cache = str(tmp_path_factory.getbasetemp() / "cache")
    with log.open("w") as stderr:
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, env={**os.environ, "PETALITE_CACHE": cache}
        )
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line, log.read_text()
    facts = json.loads(line)
    assert facts["models"] == ["one", "two"]
    yield facts["url"]
    server.terminate()
    server.stdout.close()
    assert server.wait(30) == 0, log.read_text()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events if event["level"] == "info"] == ["start", "ready", "draining", "stopped"]
    assert not [event for event in events if event["level"] == "error"]
    assert events[-1]["accepted"] == events[-1]["answered"]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "gradient.png"
    Image.linear_gradient("L").resize((60, 40)).convert("RGB").save(path)
    return path


def post(url: str, body: bytes, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with urllib.request.urlopen(urllib.request.Request(url, body, named), timeout=30) as response:
        return json.load(response)


def test_the_answer_is_the_classifiers_own(url: str, folders: list[Path], photo: Path) -> None:
    for name, folder in zip(("one", "two"), folders, strict=True):
        expected = load(folder).predict(photo, top_k=2)[0]
        found = post(f"{url}/predict?model={name}&top_k=2", photo.read_bytes(), content_type="image/png")
        assert [row["label"] for row in found] == [prediction.label for prediction in expected]
        assert [row["score"] for row in found] == pytest.approx([prediction.score for prediction in expected], abs=1e-4)


def test_hugging_faces_client_works(url: str, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import InferenceClient, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the address is on this machine
    client = InferenceClient(model=f"{url}/predict")
    plain = client.image_classification(str(photo))
    assert {row.label for row in plain} == set(CLASSES)
    assert sum(row.score for row in plain) == pytest.approx(1)
    (best,) = client.image_classification(photo.read_bytes(), top_k=1)
    assert best.label == plain[0].label


def test_kserve_answers_a_batch(url: str, photo: Path) -> None:
    data = base64.b64encode(photo.read_bytes()).decode()
    request = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [3], "data": [data] * 3}], "id": "7"}
    answer = post(f"{url}/v2/models/two/infer", json.dumps(request).encode(), content_type="application/json")
    labels, scores = answer["outputs"]
    assert (answer["model_name"], answer["id"], labels["shape"], scores["shape"]) == ("two", "7", [3, 3], [3, 3])
    assert labels["data"][:3] == labels["data"][6:]


def test_requests_at_the_same_time_each_get_their_own_answer(url: str) -> None:
    def picture(grey: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (grey, 255 - grey, grey)).save(file, "PNG")
        return file.getvalue()

    async def run() -> None:
        bodies = [picture(5 * number) for number in range(40)]
        alone = [post(f"{url}/predict", body) for body in bodies[:3]]
        together = await asyncio.gather(*(asyncio.to_thread(post, f"{url}/predict", body) for body in bodies))
        for expected, found in zip(alone, together[:3], strict=True):
            assert [row["label"] for row in found] == [row["label"] for row in expected]
            assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=0.01)
        assert all(len(found) == 3 for found in together)

    asyncio.run(run())


@pytest.mark.skipif(chromium() is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_photo_is_dropped_and_classified(url: str, photo: Path, tmp_path: Path, width: int) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(url + "/", width)
        browser.wait("document.querySelectorAll('#samples li').length && models.length === 2")
        browser.drop("#drop", photo)
        browser.wait("document.querySelectorAll('.answer').length === 2")
        first = post(f"{url}/predict", photo.read_bytes())[0]
        assert first["label"] in browser.run("document.querySelector('.answer li').textContent")
        assert "one: " + first["label"] in browser.run("document.getElementById('status').textContent")
        assert browser.run("document.querySelectorAll('.answer li').length") == 6
        assert browser.run("document.documentElement.scrollWidth") <= width
        # by keyboard alone: the first sample
        browser.run("document.querySelector('#samples button').focus()")
        browser.press("Enter")
        browser.wait("document.getElementById('photo-name').textContent.startsWith('A flower')")
        browser.wait("!document.getElementById('answers').classList.contains('busy')")
        browser.run("accept([new File(['no image'], 'notes.txt')])")
        browser.wait("document.getElementById('error').textContent.includes('not an image')")
        refused = [complaint for complaint in browser.complaints if "415" not in complaint]
        assert refused == []  # Chromium itself reports the one refusal


def test_a_port_that_is_taken_is_one_line(petalite: Petalite, folders: list[Path], url: str) -> None:  # noqa: F811
    port = url.rpartition(":")[2]
    found = petalite("serve", folders[0], "--port", port)
    assert found.code == 2
    assert found.error == f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another --host or --port"


def test_a_missing_package_is_named(petalite: Petalite, folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "fastapi" else find(name))
    assert petalite("serve", folders[0]).error == "serve needs fastapi: pip install 'petalite[serve]'"


def test_a_folder_that_is_no_checkpoint_is_refused(petalite: Petalite, tmp_path: Path) -> None:  # noqa: F811
    assert "is not a checkpoint: config.json is missing" in petalite("serve", tmp_path).error
