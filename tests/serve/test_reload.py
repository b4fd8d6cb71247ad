"""Reloading: what a folder holds now is served if it is any good; if not, and until then, what was loaded serves on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from petalite.errors import PetaliteError
from petalite.serve.metrics import Metrics
from petalite.serve.pool import Pool
from petalite.serve.service import Service
from petalite.serve.settings import Settings
from petalite.serve.snapshot import Copies
from tests.serve.test_pool import orders, until


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("petalite.serve.process._MODULE", "tests.serve.stub_worker")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = tmp_path / "a"
    path.mkdir()
    (path / "config.json").write_text('"first"')
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def test_a_reload_serves_what_is_there_now_and_refuses_what_is_damaged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = folder / "config.json"

    async def run() -> None:
        copies = Copies({"a": folder})
        pool = Pool(orders(), 1)
        service = Service(Settings(checkpoints=(folder,)), pool, Metrics(), partial(copies.hand_to, pool.reload))
        try:
            await copies.hand_to(pool.start)
            assert service.models["a"]["config"] == '"first"'
            config.write_text('"second"')
            await service.reload()
            assert service.models["a"]["config"] == '"second"'
            config.write_text('"bad"')
            with pytest.raises(PetaliteError, match="the checkpoint is damaged"):
                await service.reload()
            assert service.models["a"]["config"] == '"second"'
            # a worker that dies now is replaced by one with what is served, not with what the folder holds
            (worker,) = pool.pids
            os.kill(worker, signal.SIGKILL)
            await until(lambda: pool.ready == 1 and pool.pids != [worker])
            assert b'petalite_reloads_total{outcome="refused"} 1.0' in service.metrics.text()
            (root,) = (tmp_path / "temporary").iterdir()
            assert len(list(root.iterdir())) == 1  # the refused copy and the one before are gone
        finally:
            await pool.close()
            copies.close()

    asyncio.run(run())
    assert not list((tmp_path / "temporary").iterdir())
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events[:4] == ["reload", "reloaded", "reload", "reload_refused"]
    assert {"worker_lost", "worker_replaced"} <= set(events[4:]) <= {"worker_lost", "worker_ended", "worker_replaced"}


def test_a_folder_that_is_gone_is_refused(folder: Path) -> None:
    copies = Copies({"a": folder / "nothing"})
    with pytest.raises(PetaliteError, match=r"the checkpoint cannot be copied to .*No such file"):
        copies.take()
    copies.close()
