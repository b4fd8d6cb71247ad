"""OpenVINO: `model.xml` and `model.bin`, the graph of Petalite's own CPU engine, for any number of images at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from petalite.engine.openvino_graph import Graph, Node, Product, constant, layer_norm
from petalite.engine.openvino_runtime import op, ov
from petalite.engine.weights import Linear, Network, read_network, unsupported
from petalite.errors import PetaliteError
from petalite.export.codes import Codes
from petalite.export.targets import Array, Job, Run, as_float32

FILE = "model.xml"
_ANY = -1


class AnyBatch(Graph):
    """The engine's graph where the number of images is known only as it runs: what each image needs is repeated then.

    Its products multiply the checkpoint's own codes.
    """

    def __init__(self, network: Network, job: Job) -> None:
        self.codes = Codes(job.checkpoint)
        super().__init__(network, quantized=job.int8)

    def _product(self, layer: Linear) -> Product:
        product = super()._product(layer)
        if product.steps is None or product.span is None:
            return product
        rows, steps = self.codes.rows(layer.name, layer.weight.numpy())
        bias = None if layer.bias is None else layer.bias.numpy()
        if low := product.span[0]:
            sums = rows.sum(axis=1, dtype=np.int64) * steps[:, 0].astype(np.float64) * low
            bias = (sums if bias is None else bias + sums).astype(np.float32)
        return replace(product, matrix=rows, steps=steps, bias=bias)

    def embedded(self, pixels: Node, normalized: bool) -> Node:
        """As the engine's, the prefix tokens put in front for each image there is."""
        whole = self.shape
        self.shape = replace(whole, prefix=0)
        patches = super().embedded(pixels, normalized)
        self.shape = whole
        if not whole.prefix:
            return patches
        tokens = constant(self._tokens[None])
        tokens = tokens if self._norm_pre is None else layer_norm(tokens, self._norm_pre)
        return op.concat([repeated(tokens, patches, [whole.prefix, whole.width]), patches], 1)


def repeated(value: Node, like: Node, rest: list[int]) -> Node:
    """`value` (1, *rest) as often as `like` has rows."""
    batch = op.gather(op.shape_of(like), constant([0], np.int64), constant(0, np.int64))
    return op.broadcast(value, op.concat([batch, constant(rest, np.int64)], 0))


def write(job: Job, folder: Path) -> None:
    """Write `folder/model.xml` and `model.bin`. Raises PetaliteError for a model that the graph does not express."""
    if problem := unsupported(job.checkpoint):
        raise PetaliteError(f"the OpenVINO graph does not express {problem}; export to timm instead")
    if any(job.checkpoint.plan.merge):
        raise PetaliteError(
            f"{job.checkpoint.path} merges tokens, which the OpenVINO graph does for a fixed number of images only; "
            "export to onnx instead"
        )
    graph = AnyBatch(read_network(job.checkpoint), job)
    model = graph.model(_ANY, normalized=job.inputs == "none")
    model.outputs[0].set_names({"logits"})
    model.inputs[0].set_names({"normalized" if job.inputs == "none" else "pixels"})
    ov.save_model(model, folder / FILE, compress_to_fp16=False)


def run(job: Job, folder: Path) -> Run:
    """OpenVINO's answers on the CPU, in single precision outside of the 8-bit products."""
    model = ov.Core().compile_model(folder / FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def answers(batch: Array) -> Array:
        return as_float32(model(batch)[0])

    return answers


def runtime() -> str:
    """OpenVINO and its version."""
    return f"openvino {ov.get_version().split('-')[0]}, CPU, f32"
