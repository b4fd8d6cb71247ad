"""What importing and using OpenVINO leaves behind in a process: no message to anyone, and signals that are survived."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from petalite.engine.openvino_runtime import core

SCRIPT = """
import faulthandler, signal, socket, sys, threading, multiprocessing
faulthandler.enable()
started = []
socket.socket.connect = lambda *_: started.append("a connection")
multiprocessing.Process.start = lambda *_: started.append("a process")

from petalite.engine.openvino_runtime import core, op, ov

def engine():
    x = op.parameter([1, 4], ov.Type.f32)
    return core().compile_model(ov.Model([op.relu(x)], [x], "m"), "CPU").create_infer_request()

first, second = engine(), engine()
del first
del second
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append("a signal"))
signal.raise_signal(signal.SIGUSR1)
assert caught == ["a signal"]
assert "openvino_telemetry" not in sys.modules and started == [] and threading.active_count() == 1
"""


def test_nothing_is_reported_and_a_signal_is_survived(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("CI", None)  # where OpenVINO's telemetry is off anyway
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_there_is_one_core() -> None:
    assert core() is core()
