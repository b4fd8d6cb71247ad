"""What comes with a request -> images: each way to send one, and one line for whatever makes no sense."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from typing import Any

import pytest
import torch
from PIL import Image

from petalite.data.images import decode
from petalite.data.preprocess import Preprocess
from petalite.serve import pixels
from petalite.serve.bodies import read_predict, read_whole
from petalite.serve.kserve import read_infer, render
from petalite.serve.pixels import read_pixels
from petalite.serve.refusal import Refusal

PREPROCESS = Preprocess((32, 32), "bicubic", 1.0, "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
FORM = {"content_type": "multipart/form-data; boundary=B"}


def png(width: int = 40, height: int = 30, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, format, **options)
    return file.getvalue()


def form(*parts: tuple[str, bytes]) -> bytes:
    text = b"".join(
        b"--B\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return text + b"--B--\r\n"


def refusal(call: Any, *arguments: Any) -> Refusal:
    with pytest.raises(Refusal) as raised:
        call(*arguments)
    return raised.value


def as_json(**value: Any) -> tuple[dict[str, Any], bytes]:
    return {"content_type": "application/json; charset=utf-8"}, json.dumps(value).encode()


def test_an_image_comes_as_bytes_as_a_form_and_in_base64() -> None:
    data = png()
    encoded = base64.b64encode(data).decode()
    assert read_predict({"content_type": "image/png"}, data).images == [data]
    assert read_predict({}, data).top_k == 5
    assert read_predict({"content_type": "application/x-www-form-urlencoded", "top_k": "3"}, data).top_k == 3
    for name in ('name="f"; filename="../../etc/passwd"', 'name="f"; filename=""'):
        asked = read_predict(FORM, form(('name="top_k"', b"2"), (name, data)))
        assert (asked.images, asked.top_k) == ([data], 2)
    asked = read_predict(*as_json(inputs=encoded, parameters={"top_k": 4, "function_to_apply": "softmax"}))
    assert (asked.images, asked.top_k) == ([data], 4)
    assert read_predict(*as_json(inputs=encoded, parameters=None)).images == [data]


@pytest.mark.parametrize(
    ("head", "body", "status", "text"),
    [
        ({}, b"", 422, "the body is empty"),
        ({"content_type": "text/plain"}, b"x", 415, "a body of text/plain is not an image"),
        ({"top_k": "0"}, b"x", 422, "top_k must be a whole number of at least 1"),
        ({"top_k": "½"}, b"x", 422, "top_k must be"),
        ({"top_k": "9" * 5000}, b"x", 422, "top_k must be"),
        ({"content_type": "application/json"}, b"{", 422, "the body is not JSON"),
        ({"content_type": "application/json"}, b"[" * 100_000, 422, "the body is not JSON"),
        ({"content_type": "application/json"}, b"\xff", 422, "the body is not JSON"),
        ({"content_type": "application/json"}, b"[]", 422, "must be a JSON object, got list"),
        ({"content_type": "application/json"}, b"{}", 422, "'inputs' is missing"),
        (*as_json(inputs=3), 422, "'inputs' must be an image in base64, got int"),
        (*as_json(inputs="%%"), 422, "'inputs' is not base64"),
        (*as_json(inputs="\udc80"), 422, "'inputs' is not base64"),
        (*as_json(inputs="", parameters=[]), 422, "'parameters' must be an object"),
        (*as_json(inputs="", parameters={"topk": 1}), 422, r"unknown parameter 'topk' \(did you mean 'top_k'\?\)"),
        (*as_json(inputs="", parameters={"top_k": True}), 422, "top_k must be"),
        (*as_json(inputs="", parameters={"top_k": 1.5}), 422, "top_k must be"),
        (*as_json(inputs="", parameters={"function_to_apply": "sigmoid"}), 422, "can only be softmax"),
        (*as_json(inputs="", image=1), 422, "unknown field 'image'"),
        ({"content_type": "multipart/form-data"}, b"x", 422, "has no boundary"),
        (FORM, b"nonsense", 422, "the form is damaged"),
        (FORM, form(('name="f"; filename="a"', b"x"))[:-10], 422, "cut off|damaged"),
        (FORM, form(('name="f"', b"x")), 422, "must hold one file, it holds 0"),
        (FORM, form(*[('name="f"; filename="a"', b"x")] * 2), 422, "must hold one file, it holds 2"),
        (FORM, form(*[('name="f"', b"x")] * 17), 422, "more than 16 parts"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(head: dict[str, Any], body: bytes, status: int, text: str) -> None:
    with pytest.raises(Refusal, match=text) as raised:
        read_predict(head, body)
    assert raised.value.status == status
    assert json.loads(raised.value.body())["error"]


def test_pixels_are_those_of_the_one_preprocessing() -> None:
    for data in (png(), png(format="JPEG"), png(format="WEBP"), png(format="BMP")):
        assert torch.equal(read_pixels(data, PREPROCESS, 10_000), PREPROCESS(decode(data)))


def test_limits_are_looked_at_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(image: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(pixels, "decode", forbidden)
    bomb = bytearray(png())
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    for data in (bytes(bomb), png(1001, 100)):
        found = refusal(read_pixels, data, PREPROCESS, 100_000)
        assert (found.status, found.error_type) == (413, "image_too_large")
    scans = png(format="JPEG") + b"\xff\xda" * 101
    assert "scans" in refusal(read_pixels, scans, PREPROCESS, 10_000).message


def test_formats_that_start_programs_are_unknown_here() -> None:
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"hello", bytes(100)):
        found = refusal(read_pixels, data, PREPROCESS, 10_000)
        assert (found.status, found.error_type) == (415, "unsupported_media")


def test_damaged_images_are_refused() -> None:
    assert refusal(read_pixels, b"", PREPROCESS, 10_000).status == 422
    assert refusal(read_pixels, png()[:-30], PREPROCESS, 10_000).error_type == "damaged_image"
    assert refusal(read_pixels, png()[:30], PREPROCESS, 10_000).status in (415, 422)


def infer(**changes: Any) -> bytes:
    data = base64.b64encode(png()).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [data]}
    return json.dumps({"inputs": [{**tensor, **changes.pop("tensor", {})}], **changes}).encode()


def test_kserve_requests_in_json_and_in_binary() -> None:
    two = [base64.b64encode(png()).decode()] * 2
    asked, _ = read_infer({}, infer(tensor={"shape": [2, 1], "data": two}, parameters={"top_k": 2}), 8)
    assert (asked.images, asked.top_k) == ([png()] * 2, 2)
    elements = b"".join(struct.pack("<I", len(data)) + data for data in (png(), png()))
    tensor = {"shape": [2], "parameters": {"binary_data_size": len(elements)}, "data": None}
    text = infer(tensor=tensor, parameters={"binary_data_output": True}, id="7")
    asked, request = read_infer({"json_bytes": str(len(text))}, text + elements, 8)
    assert asked.images == [png()] * 2
    body, json_bytes = render("m", request, [[("rose", 0.75), ("é", 0.25)]] * 2)
    response = json.loads(body[:json_bytes])
    assert (response["model_name"], response["id"]) == ("m", "7")
    labels, scores = response["outputs"]
    assert labels["shape"] == scores["shape"] == [2, 2]
    size = labels["parameters"]["binary_data_size"]
    assert body[json_bytes:][:size] == (b"\4\0\0\0rose" + b"\2\0\0\0" + "é".encode()) * 2
    assert struct.unpack("<4f", body[json_bytes + size :]) == (0.75, 0.25, 0.75, 0.25)


def test_kserve_outputs_are_those_that_were_asked_for() -> None:
    _, request = read_infer({}, infer(outputs=[{"name": "score"}]), 8)
    body, json_bytes = render("m", request, [[("rose", 0.75)]])
    assert json_bytes == 0
    assert json.loads(body)["outputs"] == [{"name": "score", "datatype": "FP32", "shape": [1, 1], "data": [0.75]}]


@pytest.mark.parametrize(
    ("head", "body", "text"),
    [
        ({"json_bytes": "999999"}, infer(), "no length within the body"),
        ({"json_bytes": "-1"}, infer(), "no length within the body"),
        ({}, b"{}", "must be a list of one tensor"),
        ({}, infer(inputs=[{}, {}]), "must be a list of one tensor"),
        ({}, infer(tensor={"datatype": "FP32"}), "of datatype BYTES"),
        ({}, infer(tensor={"shape": [2]}), "the shape says 2 images, the data holds 1"),
        ({}, infer(tensor={"shape": [9]}), "may hold 1 to 8 images"),
        ({}, infer(tensor={"shape": [True]}), r"must be \[n\]"),
        ({}, infer(tensor={"data": 3}), "no 'data'"),
        ({}, infer(tensor={"data": [3]}), "must be an image in base64"),
        ({}, infer(tensor={"parameters": {"binary_data_size": 4}}), "0 bytes follow the JSON"),
        ({}, infer(id=3), "'id' must be a text"),
        ({}, infer(parameters=3), "'parameters' must be an object"),
        ({}, infer(parameters={"top_k": None}), "top_k must be"),
        ({}, infer(outputs=[{"name": "x"}]), "'outputs' must be a list of label and score"),
    ],
)
def test_kserve_requests_that_make_no_sense(head: dict[str, Any], body: bytes, text: str) -> None:
    with pytest.raises(Refusal, match=text) as raised:
        read_infer(head, body, 8)
    assert raised.value.status == 422


@pytest.mark.parametrize(("value", "whole"), [(5, 5), (5.0, 5), (5.5, None), (True, None), ("5", None), (None, None)])
def test_a_whole_number_of_json_may_have_a_point(value: object, whole: int | None) -> None:
    assert read_whole(value) == whole
