"""What a server is told: checkpoints, limits, workers. Checked before anything starts.

settings = Settings(checkpoints=(Path("runs/demo/checkpoints/int8"),), workers=2)
settings.models            # {"int8": Path("runs/demo/checkpoints/int8")}
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from petalite.engine.threads import usable_threads
from petalite.errors import PetaliteError

MOST_WORKERS = 4  # each holds the weights: more processes only where somebody asks for them


@dataclass(frozen=True)
class Settings:
    """A server's settings.

    port: 0 takes a free one. max_batch: images the model computes at once. max_wait_ms: how long the first image of a
    batch waits for others that are being decoded. queue: requests accepted and not answered; the next gets 429.
    workers: processes with a model each (None: the available cores, at most 4). threads: of each worker, for decoding
    and, on a CPU, for the model (None: the cores shared out). deadline_s: from the first byte of a request to its
    answer. max_body_mb, max_megapixels: limits of a request's body (MB) and of an image (million pixels).
    api_key: what `Authorization: Bearer` or `X-API-Key` has to hold. cors: origins whose pages may call this server.
    samples: a folder of images that the page offers. log_requests: a line for each request, not only for failures.
    """

    checkpoints: tuple[Path, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 8
    max_wait_ms: float = 2.0
    queue: int = 256
    workers: int | None = None
    threads: int | None = None
    deadline_s: float = 10.0
    max_body_mb: float = 20.0
    max_megapixels: float = 50.0
    device: str = "auto"
    attention: str = "auto"
    compute: str = "auto"
    engine: str = "auto"
    api_key: str | None = None
    cors: tuple[str, ...] = ()
    samples: Path | None = None
    log_requests: bool = False

    def __post_init__(self) -> None:
        """Refuse, as a PetaliteError, what could only fail later."""
        if not self.checkpoints:
            raise PetaliteError("name at least one checkpoint folder to serve")
        whole = {"max_batch": 4096, "queue": 1_000_000, "workers": 512, "threads": 1024}
        for name, most in whole.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise PetaliteError(f"--{name.replace('_', '-')} must be between 1 and {most}, got {value}")
        for name in ("deadline_s", "max_body_mb", "max_megapixels"):
            if not getattr(self, name) > 0:
                raise PetaliteError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.max_wait_ms <= 1000 * self.deadline_s:
            raise PetaliteError(f"--max-wait-ms must be between 0 and the deadline, got {self.max_wait_ms}")
        if not 0 <= self.port <= 65_535:
            raise PetaliteError(f"--port must be between 0 and 65535, got {self.port}")
        if self.api_key is not None and len(self.api_key) < 8:
            raise PetaliteError("an API key needs at least 8 characters")
        if self.samples is not None and not self.samples.is_dir():
            raise PetaliteError(f"--samples: {self.samples} is not a folder")
        words = {"attention": self.attention, "compute": self.compute, "engine": self.engine}
        if set(words.values()) != {"auto"}:
            from petalite.measure.names import check_words  # which imports PyTorch: not for a plain start

            check_words(**words)
        _ = self.models

    @cached_property
    def models(self) -> dict[str, Path]:
        """Folder name -> checkpoint. Raises PetaliteError where two are alike or one is not there."""
        models: dict[str, Path] = {}
        for path in self.checkpoints:
            if not (path / "config.json").is_file():
                raise PetaliteError(f"{path} is not a checkpoint: config.json is missing")
            name = path.resolve().name
            if name in models:
                raise PetaliteError(f"two checkpoints are named '{name}'; a model is served under its folder's name")
            models[name] = path
        return models

    @property
    def worker_count(self) -> int:
        """How many workers run."""
        return self.workers or min(MOST_WORKERS, usable_threads())

    @property
    def worker_threads(self) -> int:
        """Threads of each worker."""
        return self.threads or max(1, usable_threads() // self.worker_count)

    @property
    def max_body_bytes(self) -> int:
        """The limit of a request's body."""
        return int(self.max_body_mb * 1e6)

    @property
    def max_pixels(self) -> int:
        """The limit of an image."""
        return int(self.max_megapixels * 1e6)
