"""A request that is not answered with predictions: its status, its kind and one line for the person who sent it.

raise Refusal(413, "image_too_large", "the image has 90,000,000 pixels, the limit is 50,000,000; make it smaller")
"""

from __future__ import annotations

import json

#: What a refusal may be, by its status: `error_type` in the answer. `docs/serve.md` says what to do about each.
TYPES = {
    401: ("unauthorized",),
    404: ("not_found", "unknown_model"),
    405: ("method_not_allowed",),
    408: ("slow_body",),
    413: ("body_too_large", "image_too_large"),
    415: ("unsupported_media",),
    422: ("invalid_request", "damaged_image", "reload_refused"),
    429: ("overloaded",),
    431: ("invalid_request",),
    500: ("internal",),
    503: ("not_ready", "deadline", "worker_lost"),
}


class Refusal(Exception):
    """An answer with an error status. `retry_after_s` is sent as the header Retry-After."""

    def __init__(self, status: int, error_type: str, message: str, retry_after_s: int | None = None) -> None:
        assert error_type in TYPES[status], (status, error_type)
        super().__init__(message)
        self.status, self.error_type, self.message, self.retry_after_s = status, error_type, message, retry_after_s

    def body(self) -> bytes:
        """The JSON of the contract: `{"error", "error_type"}`."""
        return json.dumps({"error": self.message, "error_type": self.error_type}).encode()


def too_late() -> Refusal:
    """The deadline passed; nothing more is done about the request."""
    return Refusal(503, "deadline", "the deadline passed before there was an answer", retry_after_s=1)
