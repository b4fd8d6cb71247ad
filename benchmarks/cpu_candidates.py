"""What `cpu_peers.py` compares: Petalite's CPU engine and what a user would otherwise run, all with the same weights.

A candidate is made for a case and a batch size: a function from uint8 pixels (N, 3, H, W) to logits, and the file or
folder that holds its weights, where there is one. What cannot be made raises, whatever its library raises.

run, path = CANDIDATES["openvino-nncf-int8+bf16"](case, 8)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petalite.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from petalite.data import Preprocess
from petalite.engine import load
from petalite.engine.openvino_runtime import core
from petalite.errors import PetaliteError
from petalite.quantization import quantize

Run = Callable[[Tensor], Tensor]
OURS = "petalite-int8"


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
