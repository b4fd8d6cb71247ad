"""Batches through a device one after the other, without the device waiting for them: pinned memory, a few at a time.

    for logits in stream(classifier.forward, batches, classifier.device):     # float32, on the CPU, in order
        ...

While the device computes a batch, the next one is read and copied to it on a stream of its own. Three batches are under
way at most: one that is computed, one that is ready, one whose answer is being fetched. Each has a *slot*, memory that
is made once and used again and again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

DEPTH = 3

Call = Callable[[Tensor], Tensor]


class Slot(Protocol):
    """A place for one batch under way."""

    def send(self, batch: Tensor) -> None:
        """Start a batch. In pinned memory it has to stay as it is until it is received. Raises what starting it raises."""

    def receive(self) -> Tensor:
        """Wait for the logits of the batch that was sent, float32 (N, classes) on the CPU."""

    def close(self) -> None:
        """Wait until nothing is under way here any more, and give the memory back."""


def stream(call: Call, batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """float32 logits (N, classes) on the CPU for each batch (N, …), in order; batches are taken as they are needed.

    call: a batch on `device` -> logits there, not synchronized. batches: tensors on the CPU (or already on the device).
    An error of the source or of the call comes after the logits of all batches before it. Closing the iterator early
    waits for what is under way and frees all of it. A CPU computes batch by batch as they are asked for.
    """
    return overlapped(batches, slots(call, device))


def slots(call: Call, device: torch.device) -> Sequence[Slot]:
    """As many slots as a device of this kind has use for."""
    if device.type != "cuda":
        return [PlainSlot(call)]
    copies = torch.cuda.Stream(device)
    return [CudaSlot(call, device, copies) for _ in range(DEPTH)]


def overlapped(batches: Iterable[Tensor], slots: Sequence[Slot]) -> Iterator[Tensor]:
    """Logits for each batch in order, with a batch under way in every slot but the one that is filled next."""
    free, under_way = deque(slots), deque[Slot]()

    def received(left: int) -> Iterator[Tensor]:
        while len(under_way) > left:
            slot = under_way.popleft()
            logits = slot.receive()
            free.append(slot)
            yield logits

    source = iter(batches)
    try:
        while True:
            try:
                batch = next(source, None)
                if batch is None:
                    break
                slot = free.popleft()
                slot.send(batch)
            except Exception:  # raised again, once what was sent before it has been answered
                yield from received(0)
                raise
            under_way.append(slot)
            yield from received(len(slots) - 1)
        yield from received(0)
    finally:
        for slot in slots:
            slot.close()


class PlainSlot:
    """For a device that computes while it is called."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._logits = torch.empty(0)

    def send(self, batch: Tensor) -> None:
        self._logits = self._call(batch).float().cpu()

    def receive(self) -> Tensor:
        return self._logits

    def close(self) -> None:
        self._logits = torch.empty(0)


class CudaSlot:
    """Pinned memory for a batch and its logits, and memory on the device that only the stream `copies` writes to.

    All of it is used again only after `receive`, so after the device has read and written it.
    """

    def __init__(self, call: Call, device: torch.device, copies: torch.cuda.Stream) -> None:
        self._call, self._device, self._copies = call, device, copies
        self._copied, self._done = torch.cuda.Event(), torch.cuda.Event()
        self._source: Tensor | None = None  # where the copy to the device reads
        self._staged = self._pixels = self._pinned = self._logits = torch.empty(0)

    @torch.inference_mode()
    def send(self, batch: Tensor) -> None:
        with torch.cuda.device(self._device):
            compute = torch.cuda.current_stream()
            logits = self._call(self._moved(batch, compute))
            self._pinned = _room(self._pinned, logits.shape, torch.float32, pinned=True)
            self._logits = self._pinned[: len(logits)]
            self._logits.copy_(logits.float(), non_blocking=True)
            self._done.record(compute)

    def receive(self) -> Tensor:
        self._done.synchronize()
        self._source = None
        return self._logits.clone()

    def close(self) -> None:
        with suppress(RuntimeError):  # a device that has failed: that error is on its way already
            self._copied.synchronize()
            self._done.synchronize()
        self._source = None
        self._staged = self._pixels = self._pinned = self._logits = torch.empty(0)

    def _moved(self, batch: Tensor, compute: torch.cuda.Stream) -> Tensor:
        """The batch on the device, for what `compute` runs from now on."""
        if batch.device == self._device:
            return batch
        if batch.device.type == "cpu" and not batch.is_pinned():
            self._staged = _room(self._staged, batch.shape, batch.dtype, pinned=True)
            batch = self._staged[: len(batch)].copy_(batch)
        self._source = batch
        with torch.cuda.stream(self._copies):
            self._pixels = _room(self._pixels, batch.shape, batch.dtype, device=self._device)
            pixels = self._pixels[: len(batch)].copy_(batch, non_blocking=True)
            self._copied.record(self._copies)
        compute.wait_event(self._copied)
        return pixels


def _room(
    memory: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    pinned: bool = False,
    device: torch.device | None = None,
) -> Tensor:
    """`memory` if a batch of this shape and dtype fits, otherwise new memory for it."""
    if memory.dtype == dtype and memory.shape[1:] == tuple(shape[1:]) and len(memory) >= shape[0]:
        return memory
    return torch.empty(*shape, dtype=dtype, device=device, pin_memory=pinned)
