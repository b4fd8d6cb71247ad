"""Resizing and cropping inside an ONNX graph, against the checkpoint's own preprocessing, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from petalite.data import Preprocess
from petalite.errors import PetaliteError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def preprocess(**changes: object) -> Preprocess:
    given = {"size": (32, 32), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
    return Preprocess(**{**given, "mean": (0.5,) * 3, "std": (0.5,) * 3, **changes})  # type: ignore[arg-type]


def cut(given: Preprocess, image: np.ndarray) -> np.ndarray:
    """What the graph makes of (h, w, 3)."""
    from petalite.export.onnx_image import cut_image
    from petalite.export.onnx_ops import OPSET, Ops

    ops = Ops()
    pixels = cut_image(ops, "image", given)
    byte, helper = onnx.TensorProto.UINT8, onnx.helper
    graph = helper.make_graph(
        ops.nodes,
        "cut",
        [helper.make_tensor_value_info("image", byte, ["n", "h", "w", 3])],
        [helper.make_tensor_value_info(pixels, byte, None)],
        ops.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": image[None]})[0][0])


@pytest.mark.parametrize("size", [(50, 37), (37, 51), (36, 36), (200, 91), (20, 33)])
@pytest.mark.parametrize(
    "given",
    [
        preprocess(),
        preprocess(interpolation="bilinear", crop_pct=0.875),
        preprocess(crop_mode="squash"),
        preprocess(crop_pct=1.0, size=(31, 31)),
    ],
)
def test_the_graph_cuts_as_the_preprocessing_does(given: Preprocess, size: tuple[int, int]) -> None:
    # a picture with edges: one that is moved by a pixel differs by far more than rounding
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = given(Image.fromarray(image)).numpy().astype(int)
    found = cut(given, image).astype(int)
    assert found.shape == expected.shape
    # PIL cuts off what overshoots between rows and columns, so single pixels of such noise differ by more
    difference = np.abs(found - expected)
    assert difference.mean() < 0.5 and (difference <= 2).mean() > 0.97


@pytest.mark.parametrize(
    "given", [preprocess(crop_mode="border"), preprocess(interpolation="lanczos"), preprocess(size=(32, 48))]
)
def test_what_the_graph_does_not_express_is_refused(given: Preprocess) -> None:
    with pytest.raises(PetaliteError, match="cannot be written into an ONNX graph"):
        cut(given, np.zeros((40, 40, 3), np.uint8))
