"""The environment names what decides a measurement, without importing packages or trusting the number of cores."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest

from petalite.measure import environment as module
from petalite.measure.environment import environment, hardware


def test_it_is_json_and_holds_the_installed_versions() -> None:
    found = environment()
    json.dumps(found, allow_nan=False)
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["versions"]["timm"] == metadata.version("timm")
    assert found["python"] == ".".join(map(str, sys.version_info[:3])) and found["petalite"]
    assert found["cpu"]["model"] and found["cpu"]["cores"] >= 1


def test_it_is_the_same_a_second_time() -> None:
    assert environment() == environment()  # a study repeats a step whose environment has changed


def test_versions_are_learnt_without_importing_the_packages() -> None:
    code = (
        "import sys; from petalite.measure.environment import environment, PACKAGES; environment();"
        "print([name for name in PACKAGES if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"timm", "bitsandbytes", "peft", "transformers"} & set(eval(printed))  # torch is, to ask for GPUs


def test_a_package_that_is_missing_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    assert environment()["versions"]["no-such-package"] is None


def test_hardware_is_the_gpu_where_there_is_one() -> None:
    cpu = {"model": "AMD EPYC", "cores": 2, "flags": []}
    gpu = {"name": "NVIDIA H200"}
    assert hardware({"cpu": cpu, "gpus": []}) == "AMD EPYC, 2 cores"
    assert hardware({"cpu": cpu, "gpus": [gpu]}) == "NVIDIA H200"
    assert hardware({"cpu": cpu, "gpus": [gpu, gpu]}) == "2 x NVIDIA H200"
