"""What the OpenAPI document says about bodies and answers: the contract, as JSON Schema."""

from __future__ import annotations

from typing import Any

from petalite.serve.refusal import TYPES

_TOP_K = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
_IMAGE = {"type": "string", "contentMediaType": "application/octet-stream", "minLength": 1}
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


PREDICT: dict[str, Any] = {
    "parameters": [
        {"name": "top_k", "in": "query", "required": False, "schema": _TOP_K, "description": "How many classes (5)."},
        {
            "name": "model",
            "in": "query",
            "required": False,
            "schema": {"type": "string"},
            "description": "Which model.",
        },
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
                    "properties": {"file": {"type": "string", "format": "binary"}, "top_k": _TOP_K},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "additionalProperties": False,
                    "properties": {
                        "inputs": {"type": "string", "contentEncoding": "base64", "description": "An image."},
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
PREDICTED = answer("The most likely classes, best first.", _PREDICTIONS)

_PARAMETERS = {"type": "object"}
INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": {"type": "object", "properties": {"top_k": _TOP_K}},
                        "inputs": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 1,
                            "items": {
                                "type": "object",
                                "required": ["name", "shape", "datatype", "data"],
                                "properties": {
                                    "name": {"const": "image"},
                                    "datatype": {"const": "BYTES"},
                                    "shape": {"type": "array", "items": {"type": "integer"}},
                                    "parameters": _PARAMETERS,
                                    "data": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}},
                                },
                            },
                        },
                        "outputs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {"name": {"enum": ["label", "score"]}, "parameters": _PARAMETERS},
                            },
                        },
                    },
                }
            }
        },
    }
}
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
