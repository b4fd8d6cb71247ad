"""What a user would run on a CPU, side by side with Petalite, in interleaved rounds of one process.

    pip install -e '.[peers]'
    python benchmarks/cpu_peers.py --models vit_tiny_patch16_224,vit_base_patch16_224 --batches 1,8
    python benchmarks/cpu_peers.py --checkpoint runs/flowers/checkpoints/fp32 --data flowers102/test --calibration flowers102/train

With --models weights are random: speed does not depend on them. With --checkpoint (fp32) they are real: quantizers are
calibrated on 256 images of --calibration, and top-1 is measured on the images of --data. A candidate that is not
installed, or fails, is a row with its reason. Each timed pass follows a pause and an untimed one. Peak memory is that of
a process of its own that makes the candidate and answers three times: of OpenVINO and ONNX Runtime, one that imports
nothing but the runtime and reads the saved model; of Petalite, one whose compiled graph is on disk. A ratio above 1 says
how many times Petalite's int8 is quicker. ceiling_share: the time that the model's products alone take in the quickest
INT8 kernel of PyTorch, of the candidate's time.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpu_candidates import CANDIDATES, OURS, Case, Run
from result_files import result_path, write_rows
from torch import Tensor

from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.data import Preprocess
from petalite.data.loader import load_batches
from petalite.engine.weights import read_network
from petalite.files import disk_bytes
from petalite.measure.ceilings import quickest_product
from petalite.measure.memory import peak_rss_bytes
from petalite.speed import random_checkpoints

COLUMNS = ("model", "batch", "candidate", "status", "reason", "median_ms", "p25_ms", "p75_ms", "images_per_s",
           "times_petalite", "ceiling_share", "peak_bytes", "file_bytes", "top1", "images", "rounds")  # fmt: skip
#: Seconds in which the threads of the candidate before go to sleep: OpenMP's and ONNX Runtime's wait awake for a while.
_PAUSE = 0.03
#: A process that has nothing but the runtime and a saved model.
_LEAN = {
    ".xml": """
import sys, numpy, openvino
core = openvino.Core()
model = core.read_model(sys.argv[1])
model.reshape([int(size) for size in sys.argv[3].split(",")])
settings = {"INFERENCE_PRECISION_HINT": sys.argv[2], "PERFORMANCE_HINT": "LATENCY"}
request = core.compile_model(model, "CPU", settings).create_infer_request()
run = lambda x: request.infer([x])
""",
    ".onnx": """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
run = lambda x: session.run(None, {"x": x})
""",
    "petalite": """
import sys, numpy
from petalite.engine import load
classifier = load(sys.argv[1], "cpu", compute=sys.argv[2])
run = lambda x: list(classifier.stream_arrays([x.astype(numpy.uint8)]))
""",
}
_THRICE = """
for _ in range(3):
    run(numpy.zeros([int(size) for size in sys.argv[3].split(",")], numpy.float32))
print([int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM:")][0])
"""


def products_ms(case: Case, batch: int) -> float:
    """Milliseconds of the blocks' products alone, the quicker of two INT8 kernels for each, weights not in the cache."""
    network = read_network(case.parent)
    shapes = [tuple(layer.weight.shape) for layer in network.linears()]
    rows, here = batch * network.shape.tokens, torch.device("cpu")
    return sum(
        1e3 * shapes.count((out, inner)) * quickest_product("int8", rows, inner, out, here, seconds=0.0)[1]
        for out, inner in sorted(set(shapes))
    )


def reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:160]}"


def measured(case: Case, model: str, batch: int, names: list[str], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each candidate."""
    pixels = torch.randint(0, 256, (batch, 3, *case.preprocess.size), dtype=torch.uint8)
    runs: dict[str, Run] = {}
    paths: dict[str, Path | None] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        rows[name] = {"model": model, "batch": batch, "candidate": name, "status": "ok"}
        try:
            run, path = CANDIDATES[name](case, batch)
            with torch.inference_mode():
                for _ in range(3):
                    run(pixels)
            rows[name]["file_bytes"] = size(path)
            runs[name], paths[name] = run, path
        except Exception as error:  # whatever a peer raises, the others go on
            rows[name] |= {"status": "skipped" if isinstance(error, ImportError) else "failed", "reason": reason(error)}
        print(f"{model} batch {batch} {name}: {rows[name].get('reason', 'ready')}", file=sys.stderr, flush=True)
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, run in runs.items():
                time.sleep(_PAUSE)
                run(pixels)
                start = time.perf_counter()
                run(pixels)
                times[name].append(1e3 * (time.perf_counter() - start))
    ceiling = products_ms(case, batch)
    ours = statistics.median(times[OURS]) if OURS in times else None
    for name, taken in times.items():
        middle = statistics.median(taken)
        low, high = np.percentile(taken, [25, 75])
        rows[name] |= {"median_ms": round(middle, 3), "p25_ms": round(low, 3), "p75_ms": round(high, 3),
                       "images_per_s": round(1e3 * batch / middle, 2), "ceiling_share": round(ceiling / middle, 3),
                       "times_petalite": round(middle / ours, 3) if ours else "", "rounds": rounds,
                       "peak_bytes": peak_alone(case, name, batch, paths[name])}  # fmt: skip
        if case.test is not None and batch > 1 and not name.endswith("-normalized"):
            rows[name] |= {"top1": top1(runs[name], case.test, batch), "images": len(case.test[1])}
    yield from rows.values()


def top1(run: Run, test: tuple[Tensor, Tensor], batch: int) -> float:
    """The share of right answers; the last batch is filled up, since some candidates have fixed shapes."""
    pixels, targets = test
    right = 0
    with torch.inference_mode():
        for start in range(0, len(pixels), batch):
            part = pixels[start : start + batch]
            filled = torch.cat([part, part[-1:].expand(batch - len(part), -1, -1, -1)])
            right += int((run(filled)[: len(part)].argmax(1) == targets[start : start + batch]).sum())
    return round(right / len(pixels), 5)


def size(path: Path | None) -> int | str:
    if path is None:
        return ""
    if path.suffix == ".xml":
        return path.stat().st_size + path.with_suffix(".bin").stat().st_size
    return disk_bytes(path) if path.is_dir() else path.stat().st_size


def peak_alone(case: Case, name: str, batch: int, path: Path | None) -> int | str:
    """The largest resident set of a process that makes one candidate and answers three times."""
    ours = name.startswith("petalite")
    lean = _LEAN.get("petalite" if ours else path.suffix) if path else None
    if lean and path:
        hint = "f32" if name.endswith("fp32") else "bf16"
        if ours:
            hint = name.split("-")[1] if name.split("-")[1] in ("bf16", "fp32") else "int8"
        shape = ",".join(map(str, (batch, 3, *case.preprocess.size)))
        command = [sys.executable, "-c", lean + _THRICE, str(path), hint, shape]
    else:
        command = [sys.executable, __file__, "--alone", name, "--checkpoint", str(case.parent.path)]
        command += ["--folder", str(case.folder), "--batches", str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else ""


def alone(options: argparse.Namespace) -> None:
    """What `peak_alone` starts for candidates in PyTorch."""
    case = Case(read_checkpoint(options.checkpoint), options.folder, None, None)
    batch = int(options.batches)
    run, _ = CANDIDATES[options.alone](case, batch)
    with torch.inference_mode():
        for _ in range(3):
            run(torch.zeros(batch, 3, *case.preprocess.size, dtype=torch.uint8))
    print(peak_rss_bytes())


def labelled(folder: Path, checkpoint: Checkpoint, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Pixels and classes of the images in a folder's class folders; of `most` at most, spread evenly."""
    classes = checkpoint.config.get("class_folders") or sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [(path, index) for index, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
    files = files[:: max(1, len(files) // most)][:most] if most else files
    preprocess = Preprocess.from_config(checkpoint.config)
    batches = load_batches([path for path, _ in files], preprocess, 64, None)
    return torch.cat([batch.pixels for batch in batches]), torch.tensor([index for _, index in files])


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="vit_tiny_patch16_224,vit_base_patch16_224,vit_large_patch16_224")
    parser.add_argument("--checkpoint", type=Path, help="an fp32 checkpoint, instead of --models")
    parser.add_argument("--data", type=Path, help="class folders to measure top-1 on")
    parser.add_argument("--calibration", type=Path, help="class folders to calibrate on")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--only", default=",".join(CANDIDATES))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # nncf and the converter report what is done
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    if options.alone:
        alone(options)
        return
    names = options.only.split(",")
    if unknown := sorted(set(names) - set(CANDIDATES)):
        parser.error(f"unknown candidate {unknown[0]}; known: {', '.join(CANDIDATES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = [str(options.checkpoint)] if options.checkpoint else options.models.split(",")
        for model in models:
            calibration = test = None
            if options.checkpoint:
                parent = read_checkpoint(options.checkpoint)
                model = str(parent.config["architecture"])
                test = labelled(options.data, parent) if options.data else None
                calibration = labelled(options.calibration, parent, 256)[0] if options.calibration else None
            else:
                parent = read_checkpoint(random_checkpoints(model, ["fp32"], folder / model)["fp32"])
            case = Case(parent, folder / "peers" / model, calibration, test)
            label = f"{model}-{options.data.parent.name}" if options.checkpoint and options.data else model
            path = result_path(options.out, f"cpu-peers_{label}", "openvino")
            for batch in map(int, options.batches.split(",")):
                write(path, list(measured(case, model, batch, names, options.rounds)))
            print(path)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a CSV, in place of those of the same batch size and candidate: ratios are those of a row's own run."""
    if path.exists():
        with path.open(newline="") as file:
            known = {(row["batch"], row["candidate"]): row for row in csv.DictReader(file)}
        rows = [*({**known, **{(str(row["batch"]), row["candidate"]): row for row in rows}}.values())]
    write_rows(path, sorted(rows, key=lambda row: int(row["batch"])), COLUMNS)


if __name__ == "__main__":
    main()
