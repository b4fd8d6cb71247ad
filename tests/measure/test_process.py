"""A measuring process answers, whatever its libraries print; each way it can fail is one line, and never a hang."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from petalite.measure.process import Worker, WorkerError
from petalite.measure.worker import explain

Start = Callable[..., Worker]


def test_measuring_a_variant_of_its_own(tiny: dict[str, Path]) -> None:
    with Worker() as worker:
        info = worker.load(tiny["int8"], attention="fa2", device="cpu", threads=1)
        assert info["format"] == "int8" and info["attention"] == "fa2" and info["threads"] == 1
        assert info["load_s"] > 0
        worker.warm_up(1)
        samples = worker.latency(batch=1, samples=4, seconds=0.0)
        assert len(samples) == 4 and min(samples) > 0
        memory = worker.memory()
        assert memory["kind"] == "rss" and memory["peak_bytes"] >= info["before_bytes"] > 50e6
        assert worker.throughput(batch=3, seconds=0.0)["images_per_s"] > 0
        kernels = worker.profile(batch=2)
        assert kernels["attention_ran"] == "fa2" and kernels["matmul_ms"] > 0 and kernels["dequantize_ms"] > 0
    assert not worker.alive
    with pytest.raises(WorkerError, match="closed"):
        worker.memory()


def test_a_checkpoint_that_is_none_is_one_line_and_the_process_goes_on(tiny: dict[str, Path]) -> None:
    with Worker() as worker:
        with pytest.raises(WorkerError, match="does not exist") as caught:
            worker.load(tiny["fp32"].parent / "absent", device="cpu")
        assert "\n" not in str(caught.value) and not caught.value.out_of_memory
        with pytest.raises(WorkerError, match="unknown attention 'fa22'"):
            worker.load(tiny["fp32"], attention="fa22", device="cpu")
        assert worker.load(tiny["fp32"], attention="math", device="cpu")["attention"] == "math"


def test_failures_that_a_process_survives(fake_worker: Start) -> None:
    """One process, one failure after the other: each is told, and none spoils what comes next."""
    with fake_worker() as worker:
        # what libraries print is no answer
        assert worker.load(Path("prints"))["format"] == "fp32"
        assert any("printed, not answered" in line for line in worker.printed())
        # a variant that is refused says so in its own words
        with pytest.raises(WorkerError, match=r"^this variant cannot run here; use another$"):
            worker.load(Path("refused"))
        # out of memory is told apart, and a smaller batch still runs
        worker.load(Path("full"))
        with pytest.raises(WorkerError, match=r"^out of memory: tried to allocate 20\.00 GiB$") as caught:
            worker.throughput(batch=8, seconds=0.0)
        assert caught.value.out_of_memory
        assert worker.throughput(batch=4, seconds=0.0)["images_per_s"] > 0
        # slow is not stuck: 30 passes take more than 3 s, with a sign of progress at each
        worker.load(Path("slow"))
        worker._silence_s = 2.0
        assert len(worker.latency(batch=1, samples=30, seconds=0.0)) == 30
        # stuck is stuck, and stays so
        worker._silence_s = 60.0
        worker.load(Path("hangs"))
        worker._silence_s = 0.5
        for _ in range(2):
            with pytest.raises(WorkerError, match=r"no sign of life for 0\.5 s during 'warm_up'"):
                worker.warm_up(1)
        assert not worker.alive


@pytest.mark.parametrize(
    ("name", "reason"),
    [("killed", "killed, most likely because the system ran out of memory"), ("crashes", "exit code 7.*last words")],
)
def test_a_process_that_dies(fake_worker: Start, name: str, reason: str) -> None:
    with fake_worker() as worker:
        worker.load(Path(name))
        for _ in range(2):  # and it stays dead
            with pytest.raises(WorkerError, match=reason):
                worker.warm_up(1)
        assert not worker.alive


def test_an_error_in_the_parent_does_not_wait_for_the_child(fake_worker: Start) -> None:
    worker = fake_worker()
    worker.load(Path("hangs"))
    assert worker._process.stdin is not None
    worker._process.stdin.write('{"command": "warm_up", "batch": 1}\n')
    worker._process.stdin.flush()
    with pytest.raises(KeyboardInterrupt), worker:
        raise KeyboardInterrupt
    assert not worker.alive


PARENT = """
import sys, time
from pathlib import Path
from petalite.measure.process import Worker
worker = Worker([sys.executable, sys.argv[1]])
worker.load(Path("hangs"))
worker._process.stdin.write('{"command": "warm_up", "batch": 1}\\n')
worker._process.stdin.flush()
print(worker._process.pid, flush=True)
time.sleep(3600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_the_child_ends_with_a_parent_that_was_killed() -> None:
    fake = Path(__file__).with_name("fake_worker.py")
    with subprocess.Popen([sys.executable, "-c", PARENT, str(fake)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while running(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running(child)


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_module_in_the_current_folder_does_not_come_before_the_standard_librarys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('the wrong queue')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with Worker() as worker, pytest.raises(WorkerError, match="absent does not exist"):
        worker.load(Path("absent"), device="cpu")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has"),
            "out of memory: tried to allocate 1.50 GiB",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12"),
            "out of memory: tried to allocate 4096 bytes",
        ),
        (MemoryError(), "out of memory"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
    ],
)
def test_errors_become_one_line(error: Exception, text: str) -> None:
    explained = explain(error)
    assert explained["error"] == text
    assert explained["out_of_memory"] is text.startswith("out of memory")
    json.dumps(explained)
