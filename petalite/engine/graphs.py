"""CUDA graphs: a forward pass recorded once for each batch size, then launched as one piece.

    graphs = Graphs(fused.forward, (3, 224, 224), torch.device("cuda", 0))
    graphs.forward(pixels)      # any number of images; the first call of its kind records (seconds), the others replay
    graphs.report()             # what was recorded, how often it ran, what it holds

At small batches a GPU waits for the host to launch kernels; a graph launches all of them at once. A graph has a fixed
shape and fixed addresses, so pixels are copied into its input, batches are padded to the next of a few sizes
(*buckets*), and the answer is copied out before anyone else runs. All graphs of an instance share one pool of memory:
it is about as large as the largest of them needs.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from petalite.console import warn
from petalite.engine.kernels.launching import compile_together
from petalite.errors import PetaliteError

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: Held by whoever records a graph: while one is recorded, nothing else in the process may wait for the whole device.
CAPTURE = threading.RLock()
_WARM_UPS = 2  # the first chooses and compiles kernels, the second shows that nothing is left to choose

Forward = Callable[[Tensor], Tensor]


class Recorder(Protocol):
    """Records passes and replays them. `CudaRecorder`, or a stand-in in tests."""

    def record(self, forward: Forward, pixels: Tensor) -> tuple[Callable[[], object], Tensor]:
        """A function that runs `forward(pixels)` again, on what `pixels` then holds, and where its answer appears."""

    def in_order(self) -> AbstractContextManager[None]:
        """What is queued inside runs after all that was ever queued inside, whichever stream the callers use."""

    def pool_bytes(self) -> int:
        """Bytes that the recordings hold together; given back when the last of them goes."""

    def renew(self) -> None:
        """Record into a new pool from now on; the recordings so far are gone."""


@dataclass
class _Graph:
    pixels: Tensor
    replay: Callable[[], object]
    logits: Tensor
    images: int
    replays: int = 0


class _TooLarge(Exception):
    """A graph that does not fit, even alone; the message says what it needs."""


class Graphs:
    """`forward` as graphs on `device`, for any number of images; safe to call from several threads.

    forward: pixels (N, *image_shape) on the device -> logits (N, classes); each row depends on its own image alone.
    buckets: numbers of images for which graphs are recorded, on first use; a larger batch is split.
    limit_bytes: bound on what inputs and recordings hold (a quarter of the device's memory when None). When it is
    passed, the graphs used least recently go; a bucket that does not fit alone is given up, with a warning, and
    smaller ones are used. The same happens where the device has no memory left.
    """

    def __init__(
        self,
        forward: Forward,
        image_shape: Sequence[int],
        device: torch.device,
        buckets: Sequence[int] = BUCKETS,
        limit_bytes: int | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        if not buckets or min(buckets) < 1:
            raise PetaliteError(f"buckets must be whole numbers of at least 1, got {list(buckets)}")
        self.plain, self.device = forward, device
        self._image_shape = tuple(image_shape)
        self._buckets = sorted(set(buckets))
        self._recorder = recorder or CudaRecorder(device)
        self._limit = _quarter_of(device) if limit_bytes is None else limit_bytes
        self._graphs: OrderedDict[tuple[torch.dtype, int], _Graph] = OrderedDict()  # the last one is the latest used
        self._given_up: dict[int, str] = {}
        self._captures = self._dropped = 0
        self._lock = threading.Lock()

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, classes) of pixels (N, *image_shape), uint8 or floating point; not synchronized.

        Pixels may also lie in the CPU's memory; as with any copy that is not waited for, pinned memory must then stay
        as it is until the device is done. While the caller records a graph of its own, the plain pass becomes part of it.
        Raises PetaliteError for another shape, and for a pass that cannot be recorded.
        """
        if pixels.shape[1:] != self._image_shape:
            raise PetaliteError(
                f"a batch must be (N, {', '.join(map(str, self._image_shape))}), got {(*pixels.shape,)}"
            )
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return self.plain(pixels.to(self.device))
        parts: list[Tensor] = []
        start, images = 0, len(pixels)
        with self._lock, self._recorder.in_order():
            while start < images or not parts:
                graph = self._graph_for(images - start, pixels.dtype)
                count = min(images - start, graph.images)
                some = pixels if count == images else pixels[start : start + count]
                whole = count == graph.images  # one image's latency shows every tensor that is made on the way
                # what lies behind them is answered unread
                (graph.pixels if whole else graph.pixels[:count]).copy_(some, non_blocking=True)
                graph.replay()
                graph.replays += 1
                parts.append((graph.logits if whole else graph.logits[:count]).clone())
                start += count
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def report(self) -> dict[str, Any]:
        """JSON values: `graphs` (images, input, replays; the least recently used first), `buckets` in use, those
        `given_up` with their reason, `captures` and `dropped` so far, `bytes` held, `limit_bytes`."""
        with self._lock:
            return {
                "graphs": [
                    {"images": bucket, "input": str(dtype).removeprefix("torch."), "replays": graph.replays}
                    for (dtype, bucket), graph in self._graphs.items()
                ],
                "buckets": list(self._buckets),
                "given_up": {str(bucket): reason for bucket, reason in self._given_up.items()},
                "captures": self._captures,
                "dropped": self._dropped,
                "bytes": self._bytes(),
                "limit_bytes": self._limit,
            }

    def _graph_for(self, count: int, dtype: torch.dtype) -> _Graph:
        """The graph of the smallest bucket that takes `count` images, or of the largest bucket."""
        while True:
            bucket = self._buckets[min(bisect_left(self._buckets, count), len(self._buckets) - 1)]
            if (dtype, bucket) in self._graphs:
                self._graphs.move_to_end((dtype, bucket))
                return self._graphs[dtype, bucket]
            try:
                return self._capture(bucket, dtype)
            except _TooLarge as error:
                self._give_up(bucket, str(error))

    def _capture(self, bucket: int, dtype: torch.dtype) -> _Graph:
        """Record a graph; a second time, alone in a new pool, where it does not fit beside the others.

        A pool gives nothing back before its last graph is gone, so dropping the others may not be enough.
        """
        if self._graphs:
            try:
                return self._capture_within_limit(bucket, dtype)
            except _TooLarge:
                self._clear()
        return self._capture_within_limit(bucket, dtype)

    def _capture_within_limit(self, bucket: int, dtype: torch.dtype) -> _Graph:
        others = list(self._graphs)
        try:
            pixels = torch.zeros(bucket, *self._image_shape, dtype=dtype, device=self.device)
            graph = _Graph(pixels, *self._recorder.record(self.plain, pixels), bucket)
        except torch.OutOfMemoryError as error:
            raise _TooLarge(_first_line(error)) from error
        self._graphs[dtype, bucket] = graph
        self._captures += 1
        while (held := self._bytes()) > self._limit and others:
            del self._graphs[others.pop(0)]
            self._dropped += 1
        if held > self._limit:
            raise _TooLarge(f"a graph for it needs {held / 1e6:.1f} MB, the limit is {self._limit / 1e6:.1f} MB")
        return graph

    def _give_up(self, bucket: int, reason: str) -> None:
        """Go on with smaller buckets. Raises PetaliteError when there are none."""
        self._clear()
        smaller = [known for known in self._buckets if known < bucket]
        if not smaller:
            raise PetaliteError(f"no CUDA graph fits on {self.device}, not even for {bucket} images: {reason}")
        self._buckets, self._given_up[bucket] = smaller, reason
        warn(f"batches of {bucket} images do not fit on {self.device} and are split: {reason}")

    def _clear(self) -> None:
        self._dropped += len(self._graphs)
        self._graphs.clear()
        self._recorder.renew()

    def _bytes(self) -> int:
        return self._recorder.pool_bytes() + sum(graph.pixels.nbytes for graph in self._graphs.values())


class CudaRecorder:
    """Records with `torch.cuda.CUDAGraph` on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # one for all: a pool reuses memory only within a stream
        self._pools = [torch.cuda.graph_pool_handle()]  # the last is recorded into, the others still hold graphs
        self._order = _InOrder(device)

    def record(self, forward: Forward, pixels: Tensor) -> tuple[Callable[[], object], Tensor]:
        """Raises PetaliteError for a pass that a graph cannot hold, which waits for the device, say."""
        here = torch.cuda.current_stream(self.device)
        # entering the caller's own stream makes sure that it comes back, also where a failed capture leaves another
        with CAPTURE, torch.cuda.device(self.device), torch.cuda.stream(here):
            here.synchronize()  # graphs that the new one will replace may still run
            with torch.cuda.stream(self._stream):
                compile_together([lambda: forward(pixels)], self.device)
                for _ in range(_WARM_UPS):
                    forward(pixels)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            reason: Exception | None = None
            mode = "thread_local"  # other threads may go on allocating meanwhile
            try:
                with (
                    _own_workspaces(),
                    torch.cuda.graph(graph, pool=self._pools[-1], stream=self._stream, capture_error_mode=mode),
                ):
                    try:
                        logits = forward(pixels)
                    except Exception as error:
                        reason = error  # ending the capture then fails as well, with an error that says less
                        raise
            except Exception as error:
                reason = reason or error
                self._abandon()
                if isinstance(reason, torch.OutOfMemoryError):
                    raise reason from None
                raise PetaliteError(
                    f"the forward pass cannot be recorded as a CUDA graph for {len(pixels)} images on {self.device}: "
                    f"{_first_line(reason)}"
                ) from error
        return graph.replay, logits

    def in_order(self) -> AbstractContextManager[None]:
        """Callers on the same stream need nothing; one on another waits, on the device, for the call before."""
        return self._order

    def pool_bytes(self) -> int:
        """Bytes of the pools' segments: what no one else on the device can use."""
        pools = {tuple(pool) for pool in self._pools}
        segments = torch.cuda.memory_snapshot()
        return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) in pools)

    def renew(self) -> None:
        """The old pool has gone with its graphs."""
        self._pools = [torch.cuda.graph_pool_handle()]

    def _abandon(self) -> None:
        """After a capture that failed: its pool is not used again, and the allocator no longer waits for its end.

        PyTorch 2.12 sees to the latter itself; before, every later capture in the process would fail.
        """
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self.device.index, self._pools[-1])
        self._pools.append(torch.cuda.graph_pool_handle())


class _InOrder(AbstractContextManager[None]):
    """`CudaRecorder.in_order`. A generator would do, and take twice as long, before every pass."""

    def __init__(self, device: torch.device) -> None:
        self._index = device.index
        self._done = torch.cuda.Event()
        self._last: tuple[int, torch.cuda.Stream] | None = None  # with its handle, which takes less time to ask for

    def __enter__(self) -> None:
        handle: int = torch._C._cuda_getCurrentRawStream(self._index)
        if self._last is None or self._last[0] != handle:
            stream = torch.cuda.current_stream(self._index)
            if self._last is not None:
                stream.wait_event(self._done)
            self._last = (handle, stream)

    def __exit__(self, *_: object) -> None:
        assert self._last is not None
        self._done.record(self._last[1])


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let cuBLAS take its workspaces anew, inside the recording: then they are the pool's own.

    PyTorch 2.11 keeps one for each stream. A graph that used a kept one would share it with whatever else runs on that
    stream, and would go on writing to it when somebody else (torch.compile does) has it freed.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def _quarter_of(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory) // 4


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
