"""A checkpoint inside a worker: verified, loaded, warmed up, and computing batches of whatever has been decoded.

    model = Model.load("int8", folder, shown, orders, coming)
    model.advance(model.read(ask, started, answer))     # decodes; `answer` is called when its batch was computed

Loading is where a bad checkpoint is refused: its hashes are compared, its tensors read, and its first answers looked at.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from petalite.engine import Classifier, load
from petalite.errors import PetaliteError
from petalite.serve.batches import Batcher
from petalite.serve.bodies import read_predict
from petalite.serve.kserve import read_infer, render
from petalite.serve.logs import event
from petalite.serve.pixels import read_pixels
from petalite.serve.refusal import Refusal, too_late
from petalite.serve.wire import Ask, Orders
from petalite.verification import verify


@dataclass(frozen=True)
class Outcome:
    """What became of a request: a body or a refusal, and seconds: decoding, waiting for the batch, the model."""

    body: bytes | Refusal
    batch: int
    decode_s: float
    waited_s: float
    model_s: float
    json_bytes: int = 0


@dataclass(frozen=True)
class Decoded:
    """A request whose images are ready for the model `model`."""

    model: str
    kind: str
    deadline: float
    top_k: int
    request: dict[str, Any]  # of KServe's protocol; empty otherwise
    pixels: list[Tensor]
    decode_s: float
    ready: float
    answer: Callable[[Outcome], None]

    @property
    def images(self) -> int:
        return len(self.pixels)


class Model:
    """A classifier behind a batcher."""

    def __init__(
        self, name: str, classifier: Classifier, facts: dict[str, Any], orders: Orders, coming: Callable[[], bool]
    ) -> None:
        self.name, self.facts = name, facts
        self._classifier, self._orders = classifier, orders
        self._batcher: Batcher[Decoded] = Batcher(self._compute, orders.max_batch, orders.max_wait_s, coming)

    @classmethod
    def load(cls, name: str, folder: Path, shown: str, orders: Orders, coming: Callable[[], bool]) -> Model:
        """Verify, load and try a checkpoint. shown: the folder that messages name. Raises PetaliteError."""
        check(folder, shown)
        classifier = load(folder, orders.device, orders.attention, orders.compute, orders.threads, orders.engine)
        warm_up_s = _warm_up(classifier, orders, shown)
        facts = {
            **classifier.info.as_dict(),
            "checkpoint": shown,
            "labels": list(classifier.classes),
            "warm_up_s": round(warm_up_s, 3),
        }
        return cls(name, classifier, facts, orders, coming)

    def read(self, ask: Ask, started: float, answer: Callable[[Outcome], None]) -> Decoded:
        """A request's images, decoded, with what is to be called when they have been computed. Raises Refusal."""
        request: dict[str, Any] = {}
        if ask.head["kind"] == "infer":
            asked, request = read_infer(ask.head, ask.body, self._orders.max_batch)
        else:
            asked = read_predict(ask.head, ask.body)
        preprocess = self._classifier.preprocess
        pixels = [read_pixels(image, preprocess, self._orders.max_pixels) for image in asked.images]
        ready = time.monotonic()
        return Decoded(
            self.name, ask.head["kind"], ask.deadline, asked.top_k, request, pixels, ready - started, ready, answer
        )

    def advance(self, decoded: Decoded | None) -> None:
        """A request was read: it joins the batch if it is this model's; if not, the batch need not wait for it."""
        if decoded is not None and decoded.model == self.name:
            self._batcher.put(decoded)
        else:
            self._batcher.poke()

    def close(self) -> None:
        """Compute what is queued, then end."""
        self._batcher.close()

    def _compute(self, batch: list[Decoded]) -> None:
        started = time.monotonic()
        for item in batch:
            if started > item.deadline:
                item.answer(Outcome(too_late(), 0, item.decode_s, started - item.ready, 0.0))
        batch = [item for item in batch if started <= item.deadline]
        if not batch:
            return
        try:
            logits = self._classifier.logits(torch.stack([pixels for item in batch for pixels in item.pixels]))
            named = iter(self._classifier.named(logits, max(item.top_k for item in batch)))
            model_s = time.monotonic() - started
            for item in batch:
                rows = [[(found.label, found.score) for found in next(named)[: item.top_k]] for _ in item.pixels]
                body, json_bytes = self._body(item, rows)
                waited_s = started - item.ready
                item.answer(Outcome(body, len(logits), item.decode_s, waited_s, model_s, json_bytes))
        except Exception as error:
            # every batch is alike to the model: one that fails means a device or a library that will fail again
            event("model_failed", level="error", model=self.name, error=f"{type(error).__name__}: {error}"[:400])
            os._exit(1)

    def _body(self, item: Decoded, rows: list[list[tuple[str, float]]]) -> tuple[bytes, int]:
        if item.kind == "infer":
            return render(self.name, item.request, rows)
        answer = [{"label": label, "score": score} for label, score in rows[0]]
        return json.dumps(answer, allow_nan=False).encode(), 0


def check(folder: Path, shown: str) -> None:
    """Compare a checkpoint with its hashes and its plan. Raises PetaliteError with the first thing that is wrong."""
    found = verify(folder)
    if not found.ok:
        text = next(finding.text for finding in found.findings if finding.level == "error")
        raise PetaliteError(f"{shown}: {text}".replace(str(folder), shown))


def _warm_up(classifier: Classifier, orders: Orders, shown: str) -> float:
    """Decode an image and compute batches of 1, 2, 4 … images and `max_batch`; the seconds it took.

    So no request waits for a compiler, or for a decoder to be imported. Raises PetaliteError when an answer is not finite.
    """
    started = time.monotonic()
    encoded = io.BytesIO()
    Image.new("RGB", (256, 256)).save(encoded, "JPEG")
    read_pixels(encoded.getvalue(), classifier.preprocess, max_pixels=256 * 256)  # the limit is for others
    sizes = {orders.max_batch, *(1 << power for power in range(orders.max_batch.bit_length()))}
    for size in sorted(sizes):
        pixels = torch.randint(0, 256, (size, 3, *classifier.info.image_size), dtype=torch.uint8)
        if not torch.isfinite(classifier.logits(pixels)).all():
            raise PetaliteError(f"{shown} answers with NaN or infinity; train or quantize it again")
    return time.monotonic() - started
