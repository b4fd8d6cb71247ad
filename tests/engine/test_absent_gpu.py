"""GPUs that nobody here has: every kernel that the engine needs there is compiled, and fits in its shared memory."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
#: What is needed without a choice; and all that trials choose from, where memory is small. The rest by hand: minutes.
CASES = ("T4:int8:merging:first", "L4:fp8:first", "A10:int8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here; its kernels are compiled in tests/gpu")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_of_other_gpus_compile_and_fit(tmp_path: Path) -> None:
    surroundings = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PETALITE_CACHE": str(tmp_path / "cache")}
    surroundings.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.engine.absent_gpu", *CASES]
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)
    assert not [row for row in rows if row["reason"]]
    found = {gpu: Counter(row["kernel"] for row in rows if row["gpu"] == gpu) for gpu in ("T4", "L4", "A10")}
    assert {"_patches", "_norm", "_streamed", "_match", "_merge"} <= set(found["T4"]) and "_product" not in found["T4"]
    assert {"_patches", "_norm", "_whole", "_flat"} <= set(found["L4"])
    assert {"_whole", "_streamed", "_rows"} <= set(found["A10"]) and found["A10"]["_product"] > 10
