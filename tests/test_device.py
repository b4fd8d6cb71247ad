"""What can be told of a device without asking PyTorch."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from petalite import device
from petalite.device import resolve_device, surely_cpu


def test_where_pytorch_is_there_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert surely_cpu("cpu") and not surely_cpu("cuda:0")
    assert surely_cpu("auto") == (resolve_device("auto").type == "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not surely_cpu("auto")


def test_where_it_is_not_drivers_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(device, "_ROCM_DRIVER", tmp_path / "kfd")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: name)
    assert not surely_cpu("auto") and surely_cpu("cpu")
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert surely_cpu("auto")
    (tmp_path / "kfd").touch()
    assert not surely_cpu("auto")
    monkeypatch.setattr(sys, "platform", "win32")
    assert not surely_cpu("auto")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert surely_cpu("auto")
