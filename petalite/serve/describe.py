"""What the OpenAPI document says about bodies and answers: the contract, as JSON Schema."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from petalite.serve.bodies import MOST_CLASSES
from petalite.serve.refusal import TYPES

_TOP_K = {"type": "integer", "minimum": 1, "maximum": MOST_CLASSES}
_IMAGE = {"type": "string", "contentMediaType": "image/*", "minLength": 1}
_IMAGE_TEXT = {"type": "string", "contentMediaType": "image/*", "contentEncoding": "base64", "minLength": 1}
_PREDICTIONS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["label", "score"],
        "properties": {"label": {"type": "string"}, "score": {"type": "number", "minimum": 0, "maximum": 1}},
    },
}
_ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}
_TEXT = {
    401: "the API key is missing or wrong",
    404: "no such model",
    408: "the body did not arrive before the deadline",
    413: "the body or the image is too large",
    415: "not an image of a known format",
    422: "a damaged image, or a request that makes no sense",
    429: "the queue is full: try again after Retry-After seconds",
    503: "not ready, the deadline passed, or the worker ended: try again after Retry-After seconds",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers with these statuses."""
    return {
        status: {
            "description": f"{_TEXT[status]} ({', '.join(TYPES[status])})",
            "content": {"application/json": {"schema": _ERROR}},
        }
        for status in statuses
    }


def answer(description: str, schema: dict[str, Any], media_type: str = "application/json") -> dict[int | str, Any]:
    """The answer with status 200."""
    return {200: {"description": description, "content": {media_type: {"schema": schema}}}}


_PREDICT: dict[str, Any] = {
    "parameters": [
        {"name": "top_k", "in": "query", "required": False, "schema": _TOP_K, "description": "How many classes (5)."},
    ],
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _IMAGE},
            "application/octet-stream": {"schema": _IMAGE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {**_IMAGE, "format": "binary"}, "top_k": _TOP_K},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "additionalProperties": False,
                    "properties": {
                        "inputs": {**_IMAGE_TEXT, "description": "An image."},
                        "parameters": {
                            "type": ["object", "null"],
                            "additionalProperties": False,
                            "properties": {
                                "top_k": {**_TOP_K, "type": ["integer", "null"]},
                                "function_to_apply": {"enum": ["softmax", None]},
                            },
                        },
                    },
                }
            },
        },
    },
}


def predict(models: Iterable[str]) -> dict[str, Any]:
    """The request of `/predict`, where these models are served."""
    asked = {"name": "model", "in": "query", "required": False, "schema": {"enum": list(models)}}
    return {**_PREDICT, "parameters": [*_PREDICT["parameters"], {**asked, "description": "Which model (the first)."}]}


PREDICTED = answer("The most likely classes, best first.", _PREDICTIONS)

_PARAMETERS = {"type": "object"}
_ASKED_OUTPUT = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"enum": ["label", "score"]}, "parameters": _PARAMETERS},
}


def infer(most: int) -> dict[str, Any]:
    """The request of KServe's protocol, of at most so many images."""
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"const": "image"},
            "datatype": {"const": "BYTES"},
            "shape": {
                "description": "[n] or [n, 1], with n images in `data`.",
                "type": "array",
                "minItems": 1,
                "prefixItems": [{"type": "integer", "minimum": 1, "maximum": most}, {"const": 1}],
                "items": False,
            },
            "parameters": _PARAMETERS,
            "data": {"type": "array", "minItems": 1, "maxItems": most, "items": _IMAGE_TEXT},
        },
    }
    body = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object", "properties": {"top_k": _TOP_K}},
            "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": tensor},
            "outputs": {"type": ["array", "null"], "items": _ASKED_OUTPUT},
        },
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}


INFERRED = answer(
    "Two tensors of shape [n, top_k]: label and score.",
    {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {"model_name": {"type": "string"}, "outputs": {"type": "array", "items": {"type": "object"}}},
    },
)
FLAG = {"type": "object", "properties": {"ready": {"type": "boolean"}, "live": {"type": "boolean"}}}
OBJECT = {"type": "object"}
TEXT = {"type": "string"}
