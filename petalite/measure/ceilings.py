"""What a device can do at most, measured on it: products of matrices in each precision, and moving bytes.

    way, seconds = quickest_product("int8", rows=1576, inputs=768, outputs=3072, device=torch.device("cpu"))
    rate = product_flops(1576, 768, 3072) / seconds         # FLOP/s; for int8 its operations count alike
    copied_bytes_per_s(torch.device("cpu"))                 # bytes read plus bytes written

No figure is quoted from a data sheet: shares of these ceilings are shares of what the same machine does in the same run.
A product is the quickest of the plain ways there are: PyTorch's call (cuBLAS on a GPU, oneDNN on a CPU) and, on a GPU, the
first of cuBLASLt's own ranking, of which PyTorch runs only one. On a CPU its weights come in turn from several copies, as
those of a model with many layers do, so that no cache holds them.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from petalite.engine import cublaslt
from petalite.measure.latency import Call, count_forwards, nothing, time_forwards, warm_up

#: Copies of the weights that a CPU multiplies with in turn.
_COPIES = 8
#: Passes at least, on a CPU, of which the median counts.
_SAMPLES = 2 * _COPIES
#: How many of cuBLASLt's ranking are tried, and the seconds that each of them gets.
_RANKED, _TRIAL_S = 8, 0.05
_COPIED_BYTES = {"cuda": 1 << 30, "cpu": 1 << 28}
#: Makes a call that multiplies (rows, inputs) by (inputs, outputs) on a device.
_Build = Callable[[int, int, int, torch.device], Call]
_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
}


def product_flops(rows: int, inputs: int, outputs: int) -> float:
    """Operations of a product (rows, inputs) x (inputs, outputs): a multiplication and an addition each."""
    return 2.0 * rows * inputs * outputs


def quickest_product(
    precision: str, rows: int, inputs: int, outputs: int, device: torch.device, seconds: float = 0.3
) -> tuple[str, float]:
    """The quickest way to multiply (rows, inputs) by (inputs, outputs) here, by name, and its seconds.

    precision: fp32, fp16, bf16, int8 or fp8. Every way is measured for `seconds`. Raises RuntimeError where none runs on
    this device.
    """
    found: dict[str, float] = {}
    refused: Exception | None = None
    for name, build in _builders(precision, device).items():
        try:
            found[name] = _seconds(build(rows, inputs, outputs, device), device, seconds)
        except (RuntimeError, AttributeError) as error:  # the latter: an operator that this PyTorch lacks
            refused = error
    if not found:
        reason = (str(refused).strip() or type(refused).__name__).splitlines()[0]
        raise RuntimeError(f"no product in {precision} runs on {device}: {reason}") from refused
    best = min(found, key=lambda name: found[name])
    return best, found[best]


def copied_bytes_per_s(device: torch.device, seconds: float = 0.5) -> float:
    """Bytes read and written a second by a copy far larger than any cache: 1 GiB on a GPU, 256 MiB on a CPU."""
    source = torch.ones(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device, seconds)


def wait_for(device: torch.device) -> Call:
    """A call that returns when the device is done."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else nothing


def _seconds(call: Call, device: torch.device, seconds: float) -> float:
    """Of one call: on a GPU queued back to back, on a CPU the median of single ones."""
    warm_up(call, wait_for(device), passes=2, seconds=min(0.1, seconds))
    if device.type == "cuda":
        return 1 / count_forwards(call, wait_for(device), seconds=seconds)
    return statistics.median(time_forwards(call, nothing, samples=_SAMPLES, seconds=seconds)) / 1e3


def _builders(precision: str, device: torch.device) -> dict[str, _Build]:
    gpu = device.type == "cuda"
    if precision == "int8":
        return {"torch._int_mm": _int8, **({} if gpu else {"onednn.qlinear": _qlinear})}
    dtype = _DTYPES[precision]
    ways: dict[str, _Build] = {"torch._scaled_mm": _fp8} if precision == "fp8" else {"torch.mm": partial(_plain, dtype)}
    if gpu and precision != "fp32":
        ways["cublasLt"] = partial(_ranked, dtype)
    return ways


def _plain(dtype: torch.dtype, rows: int, inputs: int, outputs: int, device: torch.device) -> Call:
    a = torch.randn(rows, inputs, device=device).to(dtype)
    weights = _in_turn(device, lambda: torch.randn(outputs, inputs, device=device).to(dtype))
    return lambda: torch.mm(a, next(weights).t())


def _fp8(rows: int, inputs: int, outputs: int, device: torch.device) -> Call:
    a, w = (torch.randn(count, inputs, device=device).to(torch.float8_e4m3fn) for count in (rows, outputs))
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(a, w.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)


def _ranked(dtype: torch.dtype, rows: int, inputs: int, outputs: int, device: torch.device) -> Call:
    """The quickest of the first of cuBLASLt's ranking."""
    if reason := cublaslt.available():
        raise RuntimeError(reason)
    a, w = (torch.randn(count, inputs, device=device).to(dtype) for count in (rows, outputs))
    codes = dtype == torch.float8_e4m3fn
    out = torch.empty(rows, outputs, dtype=torch.bfloat16 if codes else dtype, device=device)
    scale = torch.ones(1, device=device) if codes else None
    found = cublaslt.algorithms(a, w, out, most=_RANKED)
    if not found:
        raise RuntimeError("cuBLASLt has no algorithm for it")
    calls = [partial(cublaslt.multiply, a, w, out, algorithm, scale=scale) for algorithm in found]
    return min(calls, key=lambda call: _seconds(call, device, _TRIAL_S))


def _int8(rows: int, inputs: int, outputs: int, device: torch.device) -> Call:
    a = torch.randint(-127, 128, (rows, inputs), dtype=torch.int8, device=device)
    weights = _in_turn(device, lambda: torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, device=device))
    return lambda: torch._int_mm(a, next(weights).t())


def _qlinear(rows: int, inputs: int, outputs: int, device: torch.device) -> Call:
    """oneDNN's product of codes that scales what it writes, as a quantized layer needs."""
    ops: Any = torch.ops.onednn
    x = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8)
    scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.long)
    weights = _in_turn(
        device,
        lambda: ops.qlinear_prepack(torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8), [rows, inputs]),
    )
    return lambda: ops.qlinear_pointwise(
        x, 1.0, 0, next(weights), scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
    )


def _in_turn(device: torch.device, make: Callable[[], Any]) -> itertools.cycle[Any]:
    return itertools.cycle([make() for _ in range(_COPIES if device.type == "cpu" else 1)])
