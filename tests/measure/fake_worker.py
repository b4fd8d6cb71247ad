"""The measuring process with a classifier that misbehaves as its checkpoint's name says. Run by the tests."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch

from petalite.errors import PetaliteError
from petalite.measure import worker


def forward(name: str, pixels: torch.Tensor) -> torch.Tensor:
    if name == "hangs":
        time.sleep(3600)
    if name == "slow":
        time.sleep(0.1)
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "crashes":
        print("a library's last words", file=sys.stderr, flush=True)
        os._exit(7)
    if name == "full" and len(pixels) > 4:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB")
    return pixels.mean(dim=(1, 2, 3))


def load(checkpoint: str, **_: Any) -> Any:
    if checkpoint == "prints":
        print('{"ok": false, "error": "printed, not answered"}')
        os.system("echo and so does a child")
    if checkpoint == "refused":
        raise PetaliteError("this variant cannot run here; use another")
    return SimpleNamespace(
        info=SimpleNamespace(as_dict=lambda: {"format": "fp32"}),
        device=torch.device("cpu"),
        preprocess=SimpleNamespace(size=(8, 8)),
        forward=lambda pixels: forward(checkpoint, pixels),
    )


if __name__ == "__main__":
    worker._PROGRESS_EVERY_S = 0.1  # so that a test need not be slow to see a slow variant
    worker.main(load)
