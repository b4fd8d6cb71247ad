"""From nothing to the first answer on a GPU: each time a new process, first with empty caches, then with what they left.

    python benchmarks/gpu_cold_start.py --model vit_large_patch16_224 --format int4 --runs 6

Caches: Petalite's and Triton's, and the bytecode of Python's modules. The first run finds none of them (`empty`), the
second only the bytecode, which `pip install` makes (`bytecode`), the others all (`kept`). The checkpoint (random weights)
lies in the page cache. Each run imports, loads, and classifies one image twice.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from result_files import result_path, write_rows

from petalite.measure.environment import environment, hardware
from petalite.speed import random_checkpoints

_PLACES = {"PETALITE_CACHE": "petalite", "TRITON_CACHE_DIR": "triton", "PYTHONPYCACHEPREFIX": "bytecode"}
_RUN = """
import json, sys, time
started = time.perf_counter()
import numpy, petalite, torch
from PIL import Image
imported = time.perf_counter()
classifier = petalite.load(sys.argv[1], device=sys.argv[2])
loaded = time.perf_counter()
image = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (500, 600, 3), dtype=numpy.uint8))
classifier.predict(image)
first = time.perf_counter()
classifier.predict(image)
second = time.perf_counter()
print(json.dumps({
    "engine": classifier.info.engine, "compute": classifier.info.compute, "import_s": imported - started,
    "load_s": loaded - imported, "first_answer_s": first - loaded, "second_answer_s": second - first,
    "total_s": first - started,
}))
"""


def run(checkpoint: Path, device: str, caches: Path) -> dict[str, Any]:
    """One start. Raises CalledProcessError with what the process wrote."""
    surroundings = {**os.environ, **{name: str(caches / place) for name, place in _PLACES.items()}}
    surroundings.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", _RUN, str(checkpoint), device]
    done = subprocess.run(command, env=surroundings, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Measure, print, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--format", default="int4")
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    machine = environment()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = random_checkpoints(options.model, [options.format], folder / "checkpoints")[options.format]
        for number in range(options.runs):
            caches = ("empty", "bytecode")[number] if number < 2 else "kept"
            if caches == "bytecode":
                for place in set(_PLACES.values()) - {"bytecode"}:
                    shutil.rmtree(folder / "caches" / place, ignore_errors=True)
            found = run(checkpoint, options.device, folder / "caches")
            row = {"model": options.model, "format": options.format, "run": number, "caches": caches}
            row |= {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}
            rows.append(row | {"hardware": hardware(machine), "torch": machine["versions"]["torch"]})
            print(rows[-1], flush=True)
    path = result_path(options.out, "gpu-cold-start")
    write_rows(path, rows)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
