"""Kernels are tested where there is a GPU on it, elsewhere on the CPU by Triton's interpreter, which runs them as Python.

The interpreter rounds float32 to bfloat16 towards zero and to float8 wrongly in part; here it rounds as GPUs do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]  # PyTorch brings Triton along wherever it can use a GPU


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run in these tests."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True, scope="session")
def _rounding_of_a_gpu(device: torch.device) -> Iterator[None]:
    """float32 to bfloat16 and float8 (e4m3): to the nearest, ties to even; float8 saturates."""
    if device.type == "cuda":
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter._convert_float
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", rounding(original, tl.float32, tl.bfloat16, tl.float8e4nv))
        yield


def rounding(original: Callable[..., Any], float32: Any, bfloat16: Any, float8: Any) -> Callable[..., Any]:
    """`original`, the interpreter's conversion of numpy arrays, with PyTorch's rounding of float32 to the other two."""

    def convert(values: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if source != float32 or target not in (bfloat16, float8):
            return original(values, source, target, mode)
        exact = torch.tensor(values.view(np.float32))
        if target == bfloat16:
            return exact.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        return exact.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    return convert
