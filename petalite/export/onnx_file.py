"""ONNX: `model.onnx`, written operation by operation and run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from petalite.engine.weights import read_network, unsupported
from petalite.errors import PetaliteError
from petalite.export.targets import Array, Job, Run, as_float32

FILE = "model.onnx"
#: A protobuf holds less than 2 GB: weights beyond this go into a file beside it.
_LARGEST = 1_900_000_000


def write(job: Job, folder: Path) -> None:
    """Write `folder/model.onnx`; weights of more than 1.9 GB into `model.onnx.data` beside it.

    Raises PetaliteError for a model that the graph does not express.
    """
    import onnx

    from petalite.export.onnx_graph import graph

    if problem := unsupported(job.checkpoint):
        raise PetaliteError(f"the ONNX graph does not express {problem}; export to timm instead")
    model = graph(read_network(job.checkpoint), job)
    large = model.ByteSize() > _LARGEST
    onnx.save_model(model, folder / FILE, save_as_external_data=large, location=f"{FILE}.data" if large else None)
    onnx.checker.check_model(folder / FILE, full_check=True)


def run(job: Job, folder: Path) -> Run:
    """ONNX Runtime's answers, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def answers(batch: Array) -> Array:
        return as_float32(session.run(None, {name: batch})[0])

    return answers


def runtime() -> str:
    """ONNX Runtime and its version."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}, CPU"
