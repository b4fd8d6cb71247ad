"""A Ray cluster of several processes gives the local run's bytes, also when one of them is killed in the middle."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from petalite.errors import PetaliteError
from petalite.prediction import predict
from petalite.prediction.cluster import Shape, _raised_by_us
from petalite.prediction.parts import Part, Parts
from tests.command import Petalite, petalite

__all__ = ["petalite"]


@pytest.mark.parametrize(
    ("resources", "device", "threads", "shape"),
    [
        ({"CPU": 16.0}, "auto", None, Shape(8, 2, 0)),
        ({"CPU": 16.0}, "auto", 5, Shape(3, 5, 0)),
        ({"CPU": 1.0}, "auto", None, Shape(1, 1, 0)),
        ({"CPU": 64.0, "GPU": 4.0}, "auto", None, Shape(4, 8, 1)),
        ({"CPU": 6.0, "GPU": 4.0}, "cuda", None, Shape(4, 1, 1)),
        ({"CPU": 6.0, "GPU": 4.0}, "cpu", None, Shape(3, 2, 0)),
    ],
)
def test_the_cluster_is_divided(resources: dict[str, float], device: str, threads: int | None, shape: Shape) -> None:
    assert Shape.of(resources, device, threads) == shape


def test_a_cluster_without_cores_is_an_error() -> None:
    with pytest.raises(PetaliteError, match="has no CPU core"):
        Shape.of({"GPU": 1.0}, "auto", None)


def test_a_workers_own_error_is_found_under_those_of_others() -> None:
    class Wrapped(Exception):
        cause: Exception

    wrapped, outer = Wrapped("of 40 lines"), RuntimeError("a task failed")
    wrapped.cause = PetaliteError("no such checkpoint")
    outer.__cause__ = wrapped
    assert _raised_by_us(outer) == "no such checkpoint"
    assert _raised_by_us(RuntimeError("other")) is None


def test_without_ray_the_extra_is_named(
    petalite: Petalite, checkpoint: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    out = photos.parent / "out.csv"
    for place in (["--engine", "ray"], ["--on", "ray"]):
        outcome = petalite("predict", checkpoint, photos, "--out", out, *place)
        assert outcome.code == 2
        assert outcome.error.endswith("need ray, which is not installed: pip install 'petalite[ray]'")
    assert (
        "unknown place 'rey' to run on (did you mean 'ray'?)"
        in petalite("predict", checkpoint, photos, "--out", out, "--on", "rey").error
    )
    assert not out.exists()


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray cluster of its own, on this machine."""
    ray = pytest.importorskip("ray", reason="needs ray: pip install 'petalite[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def engines() -> set[int]:
    """The processes of this cluster's actors, without those that decode for them."""
    import psutil

    below = psutil.Process().children(recursive=True)
    found = {process.pid: process.ppid() for process in below if "MapWorker" in " ".join(process.cmdline())}
    return {pid for pid, parent in found.items() if parent not in found}


@pytest.mark.filterwarnings("ignore")  # of Ray's own, in a version that is not ours to choose
@pytest.mark.usefixtures("cluster", "small_parts")
def test_the_same_predictions_with_a_worker_killed_in_the_middle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    Image.effect_noise((2_000, 2_000), 60).convert("RGB").save(tmp_path / "photos" / "0.jpg")  # slow to decode
    for number in range(1, 24):
        os.link(tmp_path / "photos" / "0.jpg", tmp_path / "photos" / f"{number}.jpg")
    (tmp_path / "photos" / "bad.jpg").write_text("no image")
    add, seen = Parts.add, [set[int]()]

    def adding(parts: Parts, number: int, part: Part) -> None:
        add(parts, number, part)
        if not seen[0]:
            seen[0] = engines()
            os.kill(min(seen[0]), signal.SIGKILL)
        else:
            seen.append(engines())

    monkeypatch.setattr(Parts, "add", adding)
    summary = predict(checkpoint, [tmp_path / "photos"], tmp_path / "ray.csv", batch_size=2, threads=1, on="ray")
    monkeypatch.setattr(Parts, "add", add)
    assert (summary["images"], summary["errors"]) == (25, 1)
    assert len(seen[0]) == 2
    assert set.union(*seen[1:]) - seen[0], "the worker that was killed has been replaced"
    predict(checkpoint, [tmp_path / "photos"], tmp_path / "local.csv", batch_size=2, threads=1)
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
