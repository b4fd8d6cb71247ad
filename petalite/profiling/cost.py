"""What PyTorch's profiler takes for an event, measured on operators and kernels that are no part of the model.

    cost = Cost(torch.device("cpu"), replayed=False)
    cost.round()                                     # in turn with the model's passes
    cost.operator_us(), cost.kernel_us()             # 0.6, 0.0

A probe's passes are run with and without the profiler; what they take longer, shared among its events, is the cost. It
is not fitted to the model's undisturbed time, so that parts and gaps can fail to add up to that.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F

from petalite.measure.ceilings import wait_for
from petalite.profiling.sessions import in_turn
from petalite.profiling.trace import PASS, inside, kernel_steps

#: In one pass of a probe: kernels that do next to nothing, or operators over 2 x 2 MiB.
_SMALL, _LARGE, _BEYOND_CACHES = 200, 60, 512 * 1024
_GROUPS = 10


class Cost:
    """For an operator and for a kernel with its launch, in microseconds; nothing for what there is none of.

    On a CPU of small operators and those inside them, between which a large one has put other things in the caches, as
    happens in a model: with warm caches an event takes a third of that. On a GPU of kernels that do next to nothing,
    `replayed` from a graph where the engine does that, else launched one by one, and then of operators that launch none.
    """

    def __init__(self, device: torch.device, replayed: bool) -> None:
        self.device = device
        self.operators_us: list[float] = []
        self.kernels_us: list[float] = []
        one, weight, bias = (torch.zeros(*shape, device=device) for shape in ((1, 8), (8, 8), (8,)))
        some, more = torch.ones(_BEYOND_CACHES), torch.ones(_BEYOND_CACHES)

        def kernels() -> None:
            for _ in range(_SMALL):
                one.add_(1)

        def operators() -> None:
            for _ in range(_LARGE):
                some.add_(more)
                F.linear(one, weight, bias)

        def views() -> None:
            for _ in range(_SMALL):
                one.t()

        self._kernels: Callable[[], object] | None = kernels if device.type == "cuda" else None
        self._operators: Callable[[], object] | None = views if device.type == "cuda" else operators
        if replayed:
            kernels()
            wait_for(device)()
            recorded = torch.cuda.CUDAGraph()
            stream = torch.cuda.Stream(device)  # PyTorch's own for recording is of the first device that recorded
            with torch.cuda.graph(recorded, stream=stream, capture_error_mode="thread_local"):
                kernels()
            self._kernels, self._operators = recorded.replay, None

    @torch.inference_mode()
    def round(self) -> None:
        """Some passes of the probes with and some without the profiler."""
        if self._operators is not None:
            longer_us, operators, _ = self._longer(self._operators)
            self.operators_us.append(longer_us / max(1, operators))
        if self._kernels is not None:
            longer_us, operators, kernels = self._longer(self._kernels)
            self.kernels_us.append((longer_us - operators * self.operator_us()) / max(1, kernels))

    def operator_us(self) -> float:
        """Never below zero, as it comes out where the profiler takes too little to measure."""
        return max(0.0, median(self.operators_us)) if self.operators_us else 0.0

    def kernel_us(self) -> float:
        """That of its launch is in it."""
        return max(0.0, median(self.kernels_us)) if self.kernels_us else 0.0

    def _longer(self, probe: Callable[[], object]) -> tuple[float, int, int]:
        """By how much a pass takes longer under the profiler, its operators and its kernels."""
        trace, plain_us = in_turn(probe, self.device, _GROUPS)
        outers = trace.spans(PASS)
        kernels = len(kernel_steps(trace, outers[0])[0]) if self.device.type == "cuda" else 0
        longer_us = median(one.us for one in outers) - median(plain_us)
        return longer_us, len(inside(trace.operators, outers[0])), kernels
