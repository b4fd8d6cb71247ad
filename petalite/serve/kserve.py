"""KServe's open inference protocol, version 2: `POST /v2/models/NAME/infer` and what describes a model.

A model has one input, `image`: BYTES of shape [n] or [n, 1], each element an encoded image; and two outputs of shape
[n, top_k], most likely class first: `label` (BYTES) and `score` (FP32). In JSON an image is written in base64; with the
binary extension (`Inference-Header-Content-Length`) it follows the JSON, four bytes of its length first.
Source: the protocol's specification at https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from petalite.serve.bodies import TOP_K, Asked, read_base64, read_object, read_top_k, read_whole
from petalite.serve.refusal import Refusal

INPUT, OUTPUTS = "image", ("label", "score")


def server_metadata(version: str) -> dict[str, Any]:
    """`GET /v2`."""
    return {"name": "petalite", "version": version, "extensions": ["binary_tensor_data"]}


def model_metadata(name: str) -> dict[str, Any]:
    """`GET /v2/models/NAME`."""
    return {
        "name": name,
        "versions": ["1"],
        "platform": "petalite",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "score", "datatype": "FP32", "shape": [-1, -1]},
        ],
    }


def read_infer(head: Mapping[str, Any], body: bytes, most: int) -> tuple[Asked, dict[str, Any]]:
    """The images of a request, at most `most`, and the request as it was (for `render`). Raises Refusal."""
    json_bytes = head.get("json_bytes")
    tail = b""
    if json_bytes is not None:
        if not str(json_bytes).isascii() or not str(json_bytes).isdigit() or int(json_bytes) > len(body):
            raise _invalid("the header Inference-Header-Content-Length is no length within the body")
        body, tail = body[: int(json_bytes)], body[int(json_bytes) :]
    request = read_object(body)
    if not isinstance(request.get("id", ""), str):
        raise _invalid("'id' must be a text")
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _invalid(f"'inputs' must be a list of one tensor, named {INPUT}")
    tensor = inputs[0]
    if tensor.get("name") != INPUT or tensor.get("datatype") != "BYTES":
        raise _invalid(f"the input must be named {INPUT} and of datatype BYTES: encoded images")
    count = _count(tensor.get("shape"), most)
    size = _parameters(tensor).get("binary_data_size")
    images = _from_data(tensor.get("data")) if size is None else _from_binary(tail, size)
    if len(images) != count:
        raise _invalid(f"the shape says {count} images, the data holds {len(images)}")
    _ = _wanted(request)
    top_k = _parameters(request).get("top_k", TOP_K)
    return Asked(images, read_top_k(top_k)), request


def render(model: str, request: Mapping[str, Any], answers: Sequence[Sequence[tuple[str, float]]]) -> tuple[bytes, int]:
    """The response's body, and the length of its JSON where binary data follows, else 0; answers: (label, score) by image."""
    shape = [len(answers), len(answers[0])]
    labels = [label for row in answers for label, _ in row]
    scores = [score for row in answers for _, score in row]
    outputs, tails = [], []
    for name, binary in _wanted(request):
        output: dict[str, Any] = {"name": name, "datatype": "BYTES" if name == "label" else "FP32", "shape": shape}
        if not binary:
            output["data"] = labels if name == "label" else scores
        else:
            packed = _pack_texts(labels) if name == "label" else struct.pack(f"<{len(scores)}f", *scores)
            output["parameters"] = {"binary_data_size": len(packed)}
            tails.append(packed)
        outputs.append(output)
    response = {"model_name": model, "model_version": "1", "outputs": outputs}
    if "id" in request:
        response["id"] = request["id"]
    text = json.dumps(response, allow_nan=False).encode()
    return b"".join([text, *tails]), len(text) if tails else 0


def _wanted(request: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """(output, whether in binary) as the request asks for them; all of them where it does not say."""
    all_binary = _parameters(request).get("binary_data_output") is True
    asked = request.get("outputs")
    if asked is None or asked == []:
        return [(name, all_binary) for name in OUTPUTS]
    if not isinstance(asked, list) or not all(isinstance(item, dict) and item.get("name") in OUTPUTS for item in asked):
        raise _invalid(f"'outputs' must be a list of {' and '.join(OUTPUTS)}")
    return [(item["name"], _parameters(item).get("binary_data", all_binary) is True) for item in asked]


def _count(shape: object, most: int) -> int:
    sides = [read_whole(side) for side in shape] if isinstance(shape, list) else []
    if not sides or sides[0] is None or sides[1:] not in ([], [1]):
        raise _invalid("the input's shape must be [n] or [n, 1], with n images")
    if not 1 <= sides[0] <= most:
        raise _invalid(f"a request may hold 1 to {most} images (--max-batch)")
    return sides[0]


def _from_data(data: object) -> list[bytes]:
    if isinstance(data, list) and all(isinstance(item, list) and len(item) == 1 for item in data):
        data = [item[0] for item in data]
    if not isinstance(data, list):
        raise _invalid("the input has no 'data': a list of images in base64")
    return [read_base64(item, "'data'") for item in data]


def _from_binary(tail: bytes, size: object) -> list[bytes]:
    if type(size) is not int or size != len(tail):
        raise _invalid(f"binary_data_size says {size!r:.40}, {len(tail)} bytes follow the JSON")
    images, start = [], 0
    while start < len(tail):
        (length,) = struct.unpack_from("<I", tail, start) if start + 4 <= len(tail) else (len(tail),)
        if start + 4 + length > len(tail):
            raise _invalid("the binary data is cut off")
        images.append(tail[start + 4 : start + 4 + length])
        start += 4 + length
    return images


def _pack_texts(texts: Sequence[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def _parameters(holder: Mapping[str, Any]) -> dict[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _invalid("'parameters' must be an object")
    return parameters


def _invalid(message: str) -> Refusal:
    return Refusal(422, "invalid_request", message)
