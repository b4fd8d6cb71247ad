"""Where there is no CUDA, cuBLASLt says so; on a GPU it is tested in tests/gpu."""

from __future__ import annotations

import pytest
import torch

from petalite.engine import cublaslt


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    assert "CUDA" in (cublaslt.available() or "") or "NVIDIA" in (cublaslt.available() or "")
