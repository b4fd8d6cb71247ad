"""Uploading to a hub, tried against a stand-in on this machine that speaks its protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from petalite.files import write_json
from tests.command import Petalite, checkpoint, petalite

__all__ = ["checkpoint", "petalite"]


class Hub(ThreadingHTTPServer):
    """Repositories in memory: small files come inside the commit, large ones are stored by their hash before it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.token = "hf_right"
        self.stored: dict[str, bytes] = {}
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.message = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self._known():
            self._json({"id": "someone/tiny", "siblings": [], "sha": "0" * 40, "tags": []})

    def do_PUT(self) -> None:
        body = self._body()
        self.server.stored[hashlib.sha256(body).hexdigest()] = body
        self._json({})

    def do_POST(self) -> None:
        body = self._body()
        if not self._known():
            return
        if self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            self.server.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.server.repositories.setdefault(name, {})
            self._json({"url": f"{self.server.url}/{name}", "name": name})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                 "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            self._json({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/store/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self._commit(self.path.split("/commit/")[0].removeprefix("/api/models/"), body)
        else:
            self._json({"error": self.path}, 404)

    def _known(self) -> bool:
        known = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        if not known:
            self._json({"error": "Invalid username or password."}, 401)
        return known

    def _commit(self, name: str, body: bytes) -> None:
        files = self.server.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


# the hub's client, of itself
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes/text content.:DeprecationWarning")
def test_every_file_arrives_and_the_card_has_the_metrics(hub: Hub, petalite: Petalite, tmp_path: Path) -> None:
    from tests.tiny import tiny_checkpoint

    made = tiny_checkpoint(tmp_path / "study" / "checkpoints" / "nf4").path
    accuracy = {"top1": 0.95, "top1_ci95": [0.93, 0.97], "drop_points": 0.5, "drop_ci95": [-0.2, 1.1]}
    data = {"name": "digits", "split": "test", "images": 360, "fingerprint": "83ed49"}
    row = {"name": "nf4-fa2", "checkpoint": "checkpoints/nf4", "status": "ok", "accuracy": accuracy}
    write_json(tmp_path / "study" / "results.json", {"data": data, "variants": [row]})
    done = petalite("push", made, "someone/tiny", "--private", "--message", "First")
    assert done.code == 0, done.err
    assert done.out.strip() == f"{hub.url}/someone/tiny"
    assert hub.repositories["someone/tiny"] == {path.name: path.read_bytes() for path in made.iterdir()}
    assert (hub.private["someone/tiny"], hub.message) == (True, "First")
    card = hub.repositories["someone/tiny"]["README.md"].decode()
    assert "| top-1 on 360 images of digits, test | 95.00 %, 95 % interval [93.00, 97.00] |" in card
    assert "| data | digits, fingerprint 83ed49 |" in card
    assert "| points lost | 0.50, 95 % interval [-0.20, 1.10] |" in card
    again = petalite("push", made, "someone/tiny")
    assert again.code == 0 and hub.repositories["someone/tiny"]["README.md"].decode() == card


def test_what_the_hub_refuses_is_one_line(
    hub: Hub, petalite: Petalite, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_other"
    done = petalite("push", checkpoint, "someone/tiny")
    assert done.code == 2
    assert "the hub refused someone/tiny" in done.error and "hf auth login" in done.error
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "offline: http://127.0.0.1:9 cannot be reached" in petalite("push", checkpoint, "someone/tiny").error


def test_what_is_no_checkpoint_is_not_pushed(petalite: Petalite, checkpoint: Path, tmp_path: Path) -> None:
    assert "does not exist" in petalite("push", tmp_path / "missing", "someone/tiny").error
    assert "give OWNER/NAME" in petalite("push", checkpoint, "tiny").error


def test_offline_is_said_plainly(petalite: Petalite, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = petalite("push", checkpoint, "someone/tiny")
    assert done.code == 2 and done.error.startswith("offline: HF_HUB_OFFLINE is set")
