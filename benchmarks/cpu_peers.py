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
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from petalite.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from petalite.data import Preprocess
from petalite.data.loader import load_batches
from petalite.engine import load
from petalite.engine.openvino_runtime import core
from petalite.engine.weights import read_network
from petalite.errors import PetaliteError
from petalite.files import disk_bytes
from petalite.measure.ceilings import quickest_product
from petalite.measure.environment import environment, hardware
from petalite.measure.memory import peak_rss_bytes
from petalite.quantization import quantize
from petalite.speed import random_checkpoints

Run = Callable[[Tensor], Tensor]
COLUMNS = ("model", "batch", "candidate", "status", "reason", "median_ms", "p25_ms", "p75_ms", "images_per_s",
           "times_petalite", "ceiling_share", "peak_bytes", "file_bytes", "top1", "images", "rounds")  # fmt: skip
OURS = "petalite-int8"
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


class Case:
    """A model, its checkpoints and what peers are made from. pixels uint8 (N, 3, H, W) go into every candidate."""

    def __init__(
        self, parent: Checkpoint, folder: Path, calibration: Tensor | None, test: tuple[Tensor, Tensor] | None
    ):
        self.parent, self.folder, self.calibration, self.test = parent, folder, calibration, test
        self.preprocess = Preprocess.from_config(parent.config)
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def images(self) -> Tensor:
        """Normalized images to calibrate on, (N, 3, H, W); noise where weights are random."""
        if self.calibration is not None:
            return self.preprocess.normalize(self.calibration)
        return torch.randn(16, 3, *self.preprocess.size, generator=torch.Generator().manual_seed(0))

    def module(self) -> Any:
        """timm's model in float32."""
        model: Any = self.parent.skeleton()
        model.load_state_dict(self.parent.plain_tensors(), assign=True)
        return model.eval().requires_grad_(False)

    def quantized(self, format: str) -> Checkpoint:
        """A checkpoint of ours; ranges are those of the calibration, or a guess where weights are random."""
        out = self.folder / format
        if (out / "plan.json").exists():
            return read_checkpoint(out)
        if format in ("nf4", "int8"):
            return quantize(self.parent, format, out)
        checkpoint = quantize(self.parent, format, out.with_name(f"{format}-without-ranges"))
        names = [name for name in checkpoint.plan.layers if name.startswith("blocks.")]
        spans = {name: (-0.17, 4.0) if name.endswith("fc2") else (-5.0, 5.0) for name in names}
        if self.calibration is not None:
            spans = seen_ranges(self.module(), names, self.images)
        return write_checkpoint(out, checkpoint.config, checkpoint.tensors,
                                replace(checkpoint.plan, activations=spans))  # fmt: skip


def seen_ranges(model: Any, names: list[str], images: Tensor) -> dict[str, tuple[float, float]]:
    """The range of each layer's input."""
    from petalite.calibration.ranges import InputRange

    spans = {name: InputRange() for name in names}
    for name, span in spans.items():
        model.get_submodule(name).register_forward_pre_hook(lambda _, x, span=span: span.add(x[0]))
    with torch.inference_mode():
        for start in range(0, len(images), 16):
            model(images[start : start + 16])
    return {name: span.best() for name, span in spans.items()}


def in_torch(dtype: torch.dtype, compiled: bool) -> Callable[[Case, int], tuple[Run, Path | None]]:
    """timm's model in PyTorch."""

    def make(case: Case, batch: int) -> tuple[Run, Path | None]:
        model = case.module().to(dtype)
        model = torch.compile(model) if compiled else model
        return lambda pixels: model(case.preprocess.normalize(pixels).to(dtype)).float(), None

    return make


def torchao_int8(case: Case, batch: int) -> tuple[Run, Path | None]:
    """Dynamic INT8 by torchao, compiled."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = case.module().to(torch.bfloat16)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    model = torch.compile(model)
    return lambda pixels: model(case.preprocess.normalize(pixels).bfloat16()).float(), None


def bitsandbytes(format: str) -> Callable[[Case, int], tuple[Run, Path | None]]:
    """The reference's formats in the plain module."""

    def make(case: Case, batch: int) -> tuple[Run, Path | None]:
        checkpoint = case.quantized(format)
        classifier = load(checkpoint, "cpu", engine="module")
        return lambda pixels: classifier.logits(pixels), checkpoint.path

    return make


#: Tokens merged away in few of 12 blocks, which costs less accuracy than as many in each block (docs/log.md).
TWICE = (0, 0, 0, 98, 0, 0, 0, 49, 0, 0, 0, 0)
THRICE = (0, 0, 0, 98, 0, 0, 0, 49, 0, 24, 0, 0)


def petalite(
    format: str, compute: str, merge: tuple[int, ...] | int = 0
) -> Callable[[Case, int], tuple[Run, Path | None]]:
    """The engine on a CPU, its compiled graphs kept among the case's files.

    merge: tokens merged away in each block, or a number for each of 12, of which a deeper model uses those twice as deep.
    """

    def make(case: Case, batch: int) -> tuple[Run, Path | None]:
        checkpoint = case.parent if format == "fp32" else case.quantized(format)
        if merge:
            blocks = sum(name.endswith(".mlp.fc1") for name in checkpoint.plan.layers)
            each = (merge,) * blocks if isinstance(merge, int) else stretched(merge, blocks)
            plan = replace(checkpoint.plan, merge=each)
            out = case.folder / f"{format}-merge-{'-'.join(map(str, each))}"
            checkpoint = write_checkpoint(out, checkpoint.config, checkpoint.tensors, plan)
        os.environ["PETALITE_CACHE"] = str(case.folder / "cache")
        return load(checkpoint.path, "cpu", compute=compute, engine="openvino").logits, checkpoint.path

    return make


def stretched(merge: tuple[int, ...], blocks: int) -> tuple[int, ...]:
    """The same merges in a model of `blocks` blocks, each as deep in it as before."""
    times = blocks // len(merge)
    if times * len(merge) != blocks:
        raise PetaliteError(f"merges for {len(merge)} blocks do not fit {blocks}")
    return tuple(count if place == times - 1 else 0 for count in merge for place in range(times))


def openvino(kind: str, hint: str, normalize: bool = True) -> Callable[[Case, int], tuple[Run, Path | None]]:
    """timm's model converted. kind: fp32, nncf, nncf-accuracy (with accuracy control) or int4-weights.

    normalize: whether mean and standard deviation, which Petalite has in its weights, are part of what is timed.
    """

    def make(case: Case, batch: int) -> tuple[Run, Path | None]:
        import openvino as ov

        path = case.folder / f"openvino-{kind}.xml"
        if not path.exists():
            ov.save_model(converted(case, kind), path, compress_to_fp16=False)
        model = core().read_model(path)
        model.reshape([batch, 3, *case.preprocess.size])
        settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        request = core().compile_model(model, "CPU", settings).create_infer_request()
        given: list[Any] = []

        def run(pixels: Tensor) -> Tensor:
            if normalize or not given:
                given[:] = [case.preprocess.normalize(pixels).numpy()]
            request.infer(given, share_inputs=True)
            return torch.from_numpy(request.get_output_tensor().data.copy())

        return run, path

    return make


def converted(case: Case, kind: str) -> Any:
    """OpenVINO's model of a case."""
    import openvino as ov

    size = case.preprocess.size
    with torch.no_grad():
        model = ov.convert_model(case.module(), example_input=torch.randn(1, 3, *size))
    model.reshape([-1, 3, *size])
    if kind == "fp32":
        return model
    import nncf

    nncf.set_log_level(logging.ERROR)
    if kind == "int4-weights":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=64)
    images = nncf.Dataset([image[None].numpy() for image in case.images])
    if kind == "nncf":
        return nncf.quantize(model, images, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(case.images))
    if case.test is None:
        raise RuntimeError("accuracy control needs real images: give --checkpoint and --data")
    pixels, targets = case.test
    pairs = nncf.Dataset(list(zip(case.preprocess.normalize(pixels).split(1), targets.tolist(), strict=True)),
                         lambda pair: pair[0].numpy())  # fmt: skip

    def top1(compiled: Any, items: Any) -> tuple[float, list[float]]:
        right = [float(compiled(image.numpy())[0].argmax() == target) for image, target in items]
        return sum(right) / len(right), right

    return nncf.quantize_with_accuracy_control(
        model, images, pairs, top1, max_drop=0.003, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(case.images)
    )


def onnx(kind: str) -> Callable[[Case, int], tuple[Run, Path | None]]:
    """timm's model in ONNX Runtime: fp32, dynamic or static INT8."""

    def make(case: Case, batch: int) -> tuple[Run, Path | None]:
        import onnxruntime as ort

        path, plain = case.folder / f"onnx-{kind}.onnx", case.folder / "onnx-fp32.onnx"
        if not plain.exists():
            torch.onnx.export(case.module(), (case.images[:2],), plain, input_names=["x"], output_names=["y"],
                              dynamic_axes={"x": {0: "n"}, "y": {0: "n"}}, dynamo=False, opset_version=17)  # fmt: skip
        if not path.exists():
            quantized_onnx(plain, path, kind, case)
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda pixels: torch.from_numpy(
            session.run(None, {"x": case.preprocess.normalize(pixels).numpy()})[0]
        ), path

    return make


def quantized_onnx(plain: Path, path: Path, kind: str, case: Case) -> None:
    """Write ONNX Runtime's own quantization of `plain`."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    if kind == "int8-dynamic":
        q.quantize_dynamic(prepared, path, weight_type=q.QuantType.QInt8, per_channel=True)
    else:

        class Images(q.CalibrationDataReader):
            def __init__(self) -> None:
                self.left = iter(case.images[:64])

            def get_next(self) -> Any:
                image = next(self.left, None)
                return None if image is None else {"x": image[None].numpy()}

        q.quantize_static(prepared, path, Images(), quant_format=q.QuantFormat.QDQ, per_channel=True,
                          activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8)  # fmt: skip
    prepared.unlink()


CANDIDATES: dict[str, Callable[[Case, int], tuple[Run, Path | None]]] = {
    OURS: petalite("int8-channel", "int8"),
    "petalite-int4-at-rest": petalite("int4", "int8"),
    "petalite-int8-merge-12": petalite("int8-channel", "int8", merge=12),
    "petalite-int8-merge-14": petalite("int8-channel", "int8", merge=14),
    "petalite-int8-merge-twice": petalite("int8-channel", "int8", merge=TWICE),
    "petalite-int8-merge-thrice": petalite("int8-channel", "int8", merge=THRICE),
    "petalite-bf16": petalite("fp32", "bf16"),
    "petalite-fp32": petalite("fp32", "fp32"),
    "openvino-nncf-int8+fp32": openvino("nncf", "f32"),
    "openvino-nncf-int8+bf16": openvino("nncf", "bf16"),
    "openvino-nncf-int8+bf16-normalized": openvino("nncf", "bf16", normalize=False),
    "openvino-nncf-accuracy": openvino("nncf-accuracy", "bf16"),
    "openvino-fp32": openvino("fp32", "f32"),
    "openvino-bf16": openvino("fp32", "bf16"),
    "openvino-int4-weights": openvino("int4-weights", "bf16"),
    "onnxruntime-fp32": onnx("fp32"),
    "onnxruntime-int8-dynamic": onnx("int8-dynamic"),
    "onnxruntime-int8-static": onnx("int8-static"),
    "torch-fp32": in_torch(torch.float32, False),
    "torch-bf16": in_torch(torch.bfloat16, False),
    "torch-fp32-compiled": in_torch(torch.float32, True),
    "torch-bf16-compiled": in_torch(torch.bfloat16, True),
    "torchao-int8-compiled": torchao_int8,
    "bitsandbytes-nf4": bitsandbytes("nf4"),
    "bitsandbytes-int8": bitsandbytes("int8"),
}


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
    machine = environment()
    where = hardware(machine).replace(", ", "-").replace(" ", "-").replace("/", "-")
    versions = f"torch-{machine['versions']['torch']}-openvino-{metadata.version('openvino')}".replace("+", "-")
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
            path = options.out / f"cpu-peers_{label}_{where}_{versions}.csv"
            for batch in map(int, options.batches.split(",")):
                write(path, list(measured(case, model, batch, names, options.rounds)))
            print(path)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a CSV, in place of those of the same batch size and candidate: ratios are those of a row's own run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open(newline="") as file:
            known = {(row["batch"], row["candidate"]): row for row in csv.DictReader(file)}
        rows = [*({**known, **{(str(row["batch"]), row["candidate"]): row for row in rows}}.values())]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: int(row["batch"])))


if __name__ == "__main__":
    main()
