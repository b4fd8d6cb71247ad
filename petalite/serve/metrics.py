"""What Prometheus reads at `/metrics`: how many, how long, how full.

metrics = Metrics()
metrics.answered("predict", 200, seconds=0.02, waited_s=0.001, answer=answer)

`petalite_queue_requests` over `petalite_queue_limit` is what to scale on: it rises before anybody is refused.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from petalite.serve.wire import Answer

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "petalite_requests", "Answers, by endpoint and status.", ["endpoint", "status"], registry=registry
        )
        self._whole = Histogram(
            "petalite_request_seconds", "From a request's headers to its answer.", buckets=_SECONDS, registry=registry
        )
        self._queue = Histogram(
            "petalite_queue_seconds", "Waiting: for a worker, a decoder and the batch.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._decode = Histogram(
            "petalite_decode_seconds", "Reading the body and decoding its images.", buckets=_SECONDS, registry=registry
        )
        self._inference = Histogram(
            "petalite_inference_seconds", "The model, for the batch that a request was in.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._batch = Histogram(
            "petalite_batch_images", "Images in the batch that a request was in.", buckets=_IMAGES, registry=registry
        )
        self.open = Gauge("petalite_queue_requests", "Requests accepted and not answered yet.", registry=registry)
        self.limit = Gauge("petalite_queue_limit", "Requests that are accepted at most.", registry=registry)
        self.ready = Gauge("petalite_workers_ready", "Workers that take requests.", registry=registry)
        self.restarts = Gauge("petalite_worker_restarts", "Workers that took a dead one's place.", registry=registry)
        self._reloads = Counter("petalite_reloads", "Reloads, by outcome.", ["outcome"], registry=registry)

    def answered(
        self, endpoint: str, status: int, seconds: float, waited_s: float = 0.0, answer: Answer | None = None
    ) -> None:
        """Count an answer; `answer` is the worker's, `waited_s` what it waited before it got there."""
        self._requests.labels(endpoint, str(status)).inc()
        if answer is None or not answer.batch:
            return
        self._whole.observe(seconds)
        self._queue.observe(waited_s + answer.queue_s)
        self._decode.observe(answer.decode_s)
        self._inference.observe(answer.model_s)
        self._batch.observe(answer.batch)

    def reloaded(self, outcome: str) -> None:
        """Count a reload: `done` or `refused`."""
        self._reloads.labels(outcome).inc()

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
