"""Threads inside a container: what it may use, not what the machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from petalite.data.workers import available_cores
from petalite.engine.threads import cores_allowed, usable_threads
from petalite.errors import PetaliteError


def group(root: Path, inside: str, **files: str) -> Path:
    folder = root / inside
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu__max": "150000 100000\n"}, 1.5),
        ({"cpu__max": "max 100000\n"}, None),
        ({"cpu__max": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_the_share_of_the_whole_container(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    assert cores_allowed(group(tmp_path, ".", **files), tmp_path / "none") == cores


def test_the_least_share_of_all_groups_above_counts(tmp_path: Path) -> None:
    group(tmp_path, "a", cpu__max="200000 100000")
    group(tmp_path, "a/b", cpu__max="400000 100000")
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    assert cores_allowed(tmp_path, own) == 2.0


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    group(tmp_path, "cpu/job", cpu__cfs_quota_us="50000\n", cpu__cfs_period_us="100000\n")
    group(tmp_path, "cpu", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    own = tmp_path / "own"
    own.write_text("5:memory:/other\n4:cpu,cpuacct:/job\n")
    assert cores_allowed(tmp_path, own) == 0.5
    assert usable_threads(None, tmp_path, own) == 1


def test_what_is_asked_for_is_used(tmp_path: Path) -> None:
    assert usable_threads(7) == 7
    assert usable_threads(None, tmp_path, tmp_path / "none") == available_cores()
    with pytest.raises(PetaliteError, match="threads must be at least 1, got 0"):
        usable_threads(0)
