"""What a plan costs: bytes as they will stand on disk, or milliseconds measured on this device.

packed_bytes(weight, get_format("int4"))
layer_times(shapes, formats, tokens, …)      # ms of each format's own module, for each distinct shape
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from petalite.console import track
from petalite.device import resolve_compute
from petalite.formats import Format
from petalite.formats.plain import DTYPES

#: What a tensor costs besides its values: its entry in the file's header and its hash in plan.json.
ENTRY_BYTES = 170
_ROUNDS = 15
_REPEATS = 8


def packed_bytes(weight: Tensor, format: Format) -> int:
    """Bytes on disk of a matrix in `format`."""
    packed = {"weight": weight.to(DTYPES[format.name])} if format.plain else format.pack(weight)
    return sum(tensor.numel() * tensor.element_size() + ENTRY_BYTES for tensor in packed.values())


def layer_times(
    shapes: Sequence[tuple[int, int]], formats: Sequence[Format], rows: int, device: torch.device
) -> dict[tuple[int, int], dict[str, float]]:
    """Milliseconds of one product (rows, in) → (rows, out) by each format's own module, for each (out, in).

    The formats of a shape take turns in rounds, and the median round counts: a machine that is busy for a moment slows
    all of them.
    """
    found = {}
    for shape in track(list(dict.fromkeys(shapes)), "time layers"):
        runs = {format.name: _runner(shape, format, rows, device) for format in formats}
        found[shape] = interleaved(runs, device)
    return found


def interleaved(
    runs: Mapping[str, Callable[[], object]], device: torch.device, rounds: int = _ROUNDS
) -> dict[str, float]:
    """Median milliseconds of each function over rounds in which all take turns."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for run in runs.values():
            run()
        for _ in range(rounds):
            for name, run in runs.items():
                _wait(device)
                started = time.perf_counter()
                for _ in range(_REPEATS):
                    run()
                _wait(device)
                samples[name].append(1000 * (time.perf_counter() - started) / _REPEATS)
    return {name: median(times) for name, times in samples.items()}


def _runner(shape: tuple[int, int], format: Format, rows: int, device: torch.device) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) * shape[1] ** -0.5
    dtype = DTYPES[resolve_compute("auto", format.name, device)]
    packed = {"weight": weight.to(DTYPES[format.name])} if format.plain else format.pack(weight)
    module: nn.Module = format.build(packed, torch.zeros(shape[0]), dtype, device).eval()
    x = torch.randn(1, rows, shape[1], generator=generator).to(device, dtype)
    return lambda: module(x)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
