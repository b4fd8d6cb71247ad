"""Engine tests run the kernels as tests/engine/kernels does: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import importlib.util

import tests.engine.kernels.conftest  # noqa: F401  rounding as GPUs do

if importlib.util.find_spec("triton") is None:
    collect_ignore = ["test_products.py", "test_cuda.py"]
