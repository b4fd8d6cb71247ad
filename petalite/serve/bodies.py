"""What came with `POST /predict` -> encoded images and how many classes to name. Runs in a worker, where it harms nobody.

asked = read_predict({"content_type": "application/json"}, b'{"inputs": "…", "parameters": {"top_k": 3}}')
asked.images, asked.top_k

An image comes as the body itself, as a file in a form (multipart), or as base64 in JSON, as Hugging Face's clients send it.
File names are never looked at.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from petalite.errors import did_you_mean
from petalite.serve.forms import read_form
from petalite.serve.refusal import Refusal

TOP_K = 5
#: As many digits as an address may hold.
MOST_CLASSES = 999_999_999
_PARAMETERS = ("top_k", "function_to_apply")
#: Kinds of body that nobody means as an image; whatever else comes is tried as one, whatever it is called.
_OTHER = ("text/", "video/", "audio/", "application/pdf", "application/xml", "application/zip")


@dataclass(frozen=True)
class Asked:
    """Encoded images, and how many classes to name for each."""

    images: list[bytes]
    top_k: int = TOP_K


def read_predict(head: Mapping[str, Any], body: bytes) -> Asked:
    """head: `content_type`, and `top_k` as the address has it (a text, or None). Raises Refusal with 415 or 422."""
    full = str(head.get("content_type") or "")
    kind = full.partition(";")[0].strip().lower()
    if not body:
        raise Refusal(422, "invalid_request", "the body is empty; send an image's bytes, a form with a file, or JSON")
    top_k = _top_k_text(head.get("top_k"))
    if kind == "application/json":
        return _from_json(body, top_k)
    if kind == "multipart/form-data":
        return _from_form(full, body, top_k)
    if kind.startswith(_OTHER):
        raise Refusal(415, "unsupported_media", f"a body of {kind:.80} is not an image; send image/*, a form or JSON")
    return Asked([body], top_k or TOP_K)


def read_top_k(value: object) -> int:
    """A number of classes out of JSON. Raises Refusal."""
    number = read_whole(value)
    if number is None or not 1 <= number <= MOST_CLASSES:
        raise Refusal(422, "invalid_request", f"top_k must be a whole number of at least 1, got {value!r:.40}")
    return number


def read_whole(value: object) -> int | None:
    """A whole number out of JSON, where 5 and 5.0 are the same; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises Refusal for anything else."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(422, "invalid_request", f"the body is not JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise Refusal(422, "invalid_request", f"the body must be a JSON object, got {type(value).__name__}")
    return value


def read_base64(value: object, where: str) -> bytes:
    """The bytes that `value` writes in base64. Raises Refusal."""
    if not isinstance(value, str):
        raise Refusal(422, "invalid_request", f"{where} must be an image in base64, got {type(value).__name__}")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(422, "invalid_request", f"{where} is not base64") from None


def _top_k_text(text: object) -> int | None:
    if text is None:
        return None
    if not isinstance(text, str) or not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Refusal(422, "invalid_request", f"top_k must be a whole number of at least 1, got {text!r:.40}")
    return read_top_k(int(text))


def _from_json(body: bytes, top_k: int | None) -> Asked:
    value = read_object(body)
    if unknown := sorted(set(value) - {"inputs", "parameters"}):
        raise Refusal(422, "invalid_request", f"unknown field '{unknown[0]:.40}'; known: inputs, parameters")
    if "inputs" not in value:
        raise Refusal(422, "invalid_request", "the field 'inputs' is missing: an image in base64")
    parameters = value.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise Refusal(422, "invalid_request", "'parameters' must be an object")
    for name in parameters:
        if name not in _PARAMETERS:
            hint = did_you_mean(name, _PARAMETERS)
            raise Refusal(422, "invalid_request", f"unknown parameter '{name:.40}'{hint}; known: top_k")
    if parameters.get("function_to_apply") not in (None, "softmax"):
        raise Refusal(422, "invalid_request", "function_to_apply can only be softmax: scores are probabilities")
    wanted = parameters.get("top_k")
    if wanted is not None:
        top_k = read_top_k(wanted)
    return Asked([read_base64(value["inputs"], "'inputs'")], top_k or TOP_K)


def _from_form(content_type: str, body: bytes, top_k: int | None) -> Asked:
    """The one file of a form, and its field `top_k`."""
    parts = read_form(content_type, body)
    files = [part.data for part in parts if part.is_file]
    if len(files) != 1:
        raise Refusal(422, "invalid_request", f"the form must hold one file, it holds {len(files)}")
    for part in parts:
        if part.name == b"top_k" and not part.is_file:
            top_k = _top_k_text(part.data[:20].decode("latin-1").strip())
    return Asked(files, top_k or TOP_K)
