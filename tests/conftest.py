"""What all tests share: where the real photos and weights are, and a private cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton, whose functions read it once


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests never read or write the user's cache; they share one per worker."""
    monkeypatch.setenv("PETALITE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photos and weights; the test is skipped, with this reason, where it is missing."""
    path = Path(os.environ.get("PETALITE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (path / "data" / "flowers102").is_dir():
        pytest.skip(f"real photos and weights not found at {path}; set PETALITE_SHARED")
    return path
