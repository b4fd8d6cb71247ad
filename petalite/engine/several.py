"""Several GPUs of one host as one: an engine on each, large batches split, batches of a stream spread over them.

    several = Several([engine_on(device) for device in device_names("cuda:all")])
    several.forward(pixels)                    # logits on the first engine's device, rows in order
    for logits in several.stream(batches): …   # whole batches, each engine in turn, answers in order

Each engine is called by a thread of its own and by no one else. Nothing is shared between the devices: every one holds
all weights.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from petalite.engine.stream import Slot, overlapped, slots
from petalite.errors import PetaliteError

#: Smaller pieces than this many images are not worth a device of their own.
LEAST = 16
T = TypeVar("T")
_NAMES = re.compile(r"cuda:(all|\d+(?:,\d+)+)")


class Engine(Protocol):
    """What answers on one device."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, classes) of pixels (N, 3, H, W), on `device`, not synchronized."""

    def report(self) -> dict[str, Any]:
        """What it has to say of itself, as JSON values."""


def device_names(name: str) -> tuple[str, ...]:
    """The devices that a name stands for: `cuda:all`, `cuda:0,2`; any other name stands for itself.

    Raises PetaliteError for a device that is named twice and for `cuda:all` where there is no GPU.
    """
    match = _NAMES.fullmatch(name)
    if match is None:
        return (name,)
    indices = range(torch.cuda.device_count()) if match[1] == "all" else [int(part) for part in match[1].split(",")]
    if not indices:
        raise PetaliteError("no CUDA GPU is usable here; run `petalite doctor` to see why, or use --device cpu")
    if len(set(indices)) < len(indices):
        raise PetaliteError(f"device '{name}' names a GPU twice")
    return tuple(f"cuda:{index}" for index in indices)


class Several:
    """`engines` behind one face. `least`: images that a device has to get at least for a batch to be split."""

    def __init__(self, engines: Sequence[Engine], least: int = LEAST) -> None:
        if not engines:
            raise PetaliteError("no device was named")
        self.engines, self.least = tuple(engines), least
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix=f"petalite-{engine.device}") for engine in self.engines
        ]
        self._turn = itertools.count()

    @property
    def device(self) -> torch.device:
        """Where `forward` leaves its logits."""
        return self.engines[0].device

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, classes) of pixels (N, …), split evenly over the engines, on the first one's device.

        Queued on the caller's streams and not synchronized. A batch too small to be split goes to one engine, another
        one each time. Raises PetaliteError naming the device on which a piece failed, once no piece is under way.
        """
        pieces = pixels.tensor_split(min(len(self.engines), max(1, len(pixels) // self.least)))
        first = next(self._turn) if len(pieces) < len(self.engines) else 0
        places = [(first + offset) % len(self.engines) for offset in range(len(pieces))]
        if pixels.is_cuda:
            # a copy to another GPU is queued on the one it comes from: behind that one's pass, it would wait for its end
            pieces = tuple(
                piece.to(self.engines[place].device, non_blocking=True)
                for place, piece in zip(places, pieces, strict=True)
            )
        running: dict[int, Future[Tensor]] = {}
        for place, piece in zip(places, pieces, strict=True):
            engine = self.engines[place]
            stream = torch.cuda.current_stream(engine.device) if engine.device.type == "cuda" else None
            running[place] = self._threads[place].submit(_run, engine, piece, stream)
        wait(running.values())
        parts = [_result(self.engines[place], future) for place, future in running.items()]
        return torch.cat([part.to(self.device, non_blocking=True) for part in parts])

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """float32 logits on the CPU for each batch, in order, as `petalite.engine.stream.stream` gives them.

        Whole batches go to the engines in turn, several under way on each.
        """
        lanes = [
            [_InThread(slot, engine, thread) for slot in slots(engine.forward, engine.device)]
            for engine, thread in zip(self.engines, self._threads, strict=True)
        ]
        turns = itertools.zip_longest(*lanes)
        return overlapped(batches, [slot for turn in turns for slot in turn if slot is not None])

    def report(self) -> dict[str, Any]:
        """Each engine's report by its device."""
        return {str(engine.device): engine.report() for engine in self.engines}


class _InThread:
    """A slot of an engine, started from the engine's own thread."""

    def __init__(self, slot: Slot, engine: Engine, thread: ThreadPoolExecutor) -> None:
        self._slot, self._engine, self._thread = slot, engine, thread
        self._sent: Future[None] | None = None

    def send(self, batch: Tensor) -> None:
        self._sent = self._thread.submit(self._slot.send, batch)

    def receive(self) -> Tensor:
        if self._sent is None:
            raise RuntimeError("nothing was sent")
        _result(self._engine, self._sent)
        return _named(self._engine, self._slot.receive)

    def close(self) -> None:
        if self._sent is not None and not self._sent.cancel():
            wait([self._sent])
        self._slot.close()


@torch.inference_mode()
def _run(engine: Engine, piece: Tensor, stream: torch.cuda.Stream | None) -> Tensor:
    """The engine's answer to what lies on its device or on the host, queued on `stream`: the caller's, on that device."""
    with nullcontext() if stream is None else torch.cuda.stream(stream):
        return engine.forward(piece.to(engine.device, non_blocking=True))


def _result(engine: Engine, future: Future[T]) -> T:
    return _named(engine, future.result)


def _named(engine: Engine, call: Callable[[], T]) -> T:
    """What `call` returns; an error of it with the device in front."""
    try:
        return call()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PetaliteError(f"{engine.device}: {reason}") from error
