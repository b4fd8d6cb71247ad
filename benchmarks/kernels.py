"""How near each GPU kernel comes to the bytes it has to move, and how it compares with PyTorch and torch.compile.

    python benchmarks/kernels.py --out kernels.csv                      # all kernels, batches 1, 32, 256
    python benchmarks/kernels.py --kernels norm,gelu --launches --out launches.csv      # every way to cut the rows

A kernel's floor is what it must read and write, over the bandwidth of a large copy that is measured in the same run.
Times are medians over replays of a CUDA graph that holds many calls, so a launch costs what it costs in the engine:
`cold`, where calls take turns over so many inputs that none is still in the L2 cache, and `warm`, where all calls use the
same inputs, as with one image. `error` is the distance from what plain PyTorch gives, relative: codes of 8 bits differ
where rounding does.

To add a kernel: a function that yields its cases, and its line in KERNELS.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import triton
from result_files import write_rows
from torch import Tensor

from petalite.engine import kernels
from petalite.engine.kernels import Launch, Quantized, norm, patches, power_of_two, quantize
from petalite.engine.kernels.gelu import gelu
from petalite.engine.kernels.norm import norm as add_norm
from petalite.engine.kernels.patches import patches as cut
from petalite.engine.kernels.quantize import apply, unchanged

TOKENS, IMAGE, PATCH = 197, 224, 16
FP8, INT8, BF16 = torch.float8_e4m3fn, torch.int8, torch.bfloat16
SHORT = {FP8: "fp8", INT8: "int8", BF16: "bf16"}
DEVICE = "cuda"
Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """One kernel on one shape.

    moved: bytes that it reads and writes at least. make: a seed to its inputs, on the device. run: inputs to the result,
    values or (values, scale). plain: the same by PyTorch's operators. operations: for kernels that do more than move.
    launches: `run` with other launches, by name; the first is the one that is chosen without being asked.
    """

    kernel: str
    variant: str
    batch: int
    shape: str
    moved: int
    make: Callable[[int], Inputs]
    run: Callable[[Inputs], Any]
    plain: Callable[[Inputs], Any]
    operations: float = 0.0
    launches: dict[str, Callable[[Inputs], Any]] = field(default_factory=dict)


def norm_cases(batch: int, width: int) -> Iterator[Case]:
    """Residual add + LayerNorm, as before each product of a block."""
    rows = batch * TOKENS
    weight, bias = (1 + 0.1 * random(0, width)).float(), random(1, width).float() * 0.1

    def plain(dtype: torch.dtype, inputs: Inputs) -> Any:
        x, add, step = inputs
        x.add_(add)
        return plain_codes(F.layer_norm(x, (width,), weight.to(BF16), bias.to(BF16), 1e-6), dtype, step)

    def run(dtype: torch.dtype, launch: Launch | None, inputs: Inputs) -> Any:
        x, add, step = inputs
        return add_norm(x, weight, bias, 1e-6, add=add, dtype=dtype, scale=step, launch=launch)

    for dtype, static in ((FP8, False), (FP8, True), (INT8, False), (BF16, False)):
        yield Case(
            "norm", named(dtype, static), batch, f"{rows}x{width}", rows * width * (6 + dtype.itemsize) + 8 * width,
            partial(make_rows, rows, width, 2, 0.02 if static else None), partial(run, dtype, None), partial(plain, dtype),
            launches={name: partial(run, dtype, launch) for name, launch in row_launches(width)},
        )  # fmt: skip


def gelu_cases(batch: int, width: int) -> Iterator[Case]:
    """GELU of the hidden layer."""
    rows, hidden = batch * TOKENS, 4 * width

    def plain(dtype: torch.dtype, form: str, inputs: Inputs) -> Any:
        x, step = inputs
        return plain_codes(F.gelu(x, approximate=form), dtype, step)

    def run(dtype: torch.dtype, form: str, launch: Launch | None, inputs: Inputs) -> Any:
        x, step = inputs
        return gelu(x, dtype=dtype, scale=step, approximate=form, launch=launch)

    for dtype, static, form in (
        (FP8, False, "none"), (FP8, True, "none"), (FP8, True, "tanh"), (INT8, True, "none"), (BF16, False, "none"),
    ):  # fmt: skip
        yield Case(
            "gelu", named(dtype, static) + (" tanh" if form == "tanh" else ""), batch, f"{rows}x{hidden}",
            rows * hidden * (2 + dtype.itemsize), partial(make_rows, rows, hidden, 1, 0.01 if static else None),
            partial(run, dtype, form, None), partial(plain, dtype, form),
            launches={
                name: partial(run, dtype, form, launch)
                for name, launch in (line_launches() if static or dtype == BF16 else row_launches(hidden))
            },
        )  # fmt: skip


def quantize_cases(batch: int, width: int) -> Iterator[Case]:
    """What attention gives, made codes in a pass of its own."""
    rows = batch * TOKENS

    def plain(dtype: torch.dtype, inputs: Inputs) -> Any:
        return plain_codes(inputs[0], dtype, inputs[1])

    def run(dtype: torch.dtype, launch: Launch | None, inputs: Inputs) -> Any:
        return apply(unchanged, inputs[0], dtype, inputs[1], launch)

    for dtype, static in ((FP8, False), (FP8, True), (INT8, False)):
        yield Case(
            "quantize", named(dtype, static), batch, f"{rows}x{width}", rows * width * 3,
            partial(make_rows, rows, width, 1, 0.01 if static else None), partial(run, dtype, None), partial(plain, dtype),
            launches={
                name: partial(run, dtype, launch)
                for name, launch in (line_launches() if static else row_launches(width))
            },
        )  # fmt: skip


def patches_cases(batch: int, width: int) -> Iterator[Case]:
    """Pixels cut into patches for the embedding."""
    grid = IMAGE // PATCH

    def make(seed: int) -> Inputs:
        generator = torch.Generator(DEVICE).manual_seed(seed)
        shape = (batch, 3, IMAGE, IMAGE)
        return (torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE, generator=generator),)

    def plain(inputs: Inputs) -> Tensor:
        cells = inputs[0].view(batch, 3, grid, PATCH, grid, PATCH).permute(0, 2, 4, 1, 3, 5)
        return (cells.to(BF16) - 128).reshape(batch * grid * grid, -1)

    yield Case(
        "patches", "bf16", batch, f"{batch}x3x{IMAGE}x{IMAGE}", batch * 3 * IMAGE * IMAGE * 3,
        make, lambda inputs: cut(inputs[0], (PATCH, PATCH), BF16), plain,
    )  # fmt: skip


KERNELS: dict[str, Callable[[int, int], Iterator[Case]]] = {
    "norm": norm_cases,
    "gelu": gelu_cases,
    "quantize": quantize_cases,
    "patches": patches_cases,
}


def named(dtype: torch.dtype, static: bool) -> str:
    """`fp8 per row`, `int8 static`, `bf16`."""
    return SHORT[dtype] + ("" if dtype == BF16 else " static" if static else " per row")


def random(seed: int, *shape: int) -> Tensor:
    """Normally distributed bfloat16 on the device."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(shape, device=DEVICE, generator=generator).to(BF16)


def make_rows(rows: int, columns: int, count: int, step: float | None, seed: int) -> Inputs:
    """`count` matrices, and the scale of their codes where it is given."""
    scale = None if step is None else torch.tensor([step], device=DEVICE)
    return (*(random(count * seed + index, rows, columns) for index in range(count)), scale)


def plain_codes(x: Tensor, dtype: torch.dtype, step: Tensor | None) -> Quantized:
    """`quantize` in PyTorch's operators."""
    if dtype == BF16:
        return x, None
    largest = 448.0 if dtype == FP8 else 127.0
    scale = step if step is not None else x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-30) / largest
    codes = (x.float() / scale).clamp(-largest, largest)
    return (codes if dtype == FP8 else codes.round()).to(dtype), scale


def row_launches(columns: int) -> list[tuple[str, Launch | None]]:
    """Ways to cut rows that are reduced, the usual one first."""
    block = power_of_two(columns)
    found: list[tuple[str, Launch | None]] = [("chosen", None)]
    for rows in (1, 2, 4):
        for warps in (1, 2, 4, 8, 16):
            if 4 <= rows * block // (32 * warps) <= 64:
                found.append((f"{rows} rows, {warps} warps", Launch(rows, block, warps)))
    return found


def line_launches() -> list[tuple[str, Launch | None]]:
    """Ways to cut values in a line."""
    sizes = [(1_024, 4), (2_048, 4), (4_096, 4), (2_048, 8), (4_096, 8), (8_192, 8), (1_024, 2), (2_048, 2)]
    return [("chosen", None), *((f"{block}, {warps} warps", Launch(1, block, warps)) for block, warps in sizes)]


@contextlib.contextmanager
def independent() -> Iterator[None]:
    """Kernels start when the one before has ended."""
    modules: list[Any] = [kernels, norm, quantize, patches]
    kept = kernels.dependent
    for module in modules:
        module.dependent = lambda device: False
    try:
        yield
    finally:
        for module in modules:
            module.dependent = kept


def timed(run: Callable[[Inputs], Any], sets: list[Inputs], seconds: float) -> float:
    """Microseconds of one call: the median over replays of a graph in which calls take turns over `sets`."""
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for inputs in (*sets[:2], sets[0]):  # what a first call compiles is not timed
        torch.cuda.synchronize()
        started.record()
        run(inputs)
        ended.record()
        ended.synchronize()
    calls = max(len(sets), min(100, math.ceil(5 / started.elapsed_time(ended))))
    results: deque[Any] = deque(maxlen=len(sets))  # held, so that calls do not all write to the same place
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(calls):
            results.append(run(sets[call % len(sets)]))
    samples: list[float] = []
    graph.replay()
    while sum(samples) < seconds * 1e3 or len(samples) < 10:
        started.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        samples.append(started.elapsed_time(ended))
    return 1e3 * median(samples) / calls


def copy_bandwidth(seconds: float) -> float:
    """Bytes a second, read plus written, of a copy of 1 GiB."""
    source, target = torch.empty(2, 1 << 30, dtype=torch.uint8, device=DEVICE).unbind()
    source.random_()
    microseconds = timed(lambda inputs: inputs[1].copy_(inputs[0]), [(source, target)], seconds)
    return 2 * source.numel() / (microseconds * 1e-6)


def decoded(result: Any) -> Tensor:
    """What values and their scale stand for, float32."""
    values, scale = result if isinstance(result, tuple) else (result, None)
    return values.float() if scale is None else values.float() * scale.view(-1, 1)


def error(case: Case, run: Callable[[Inputs], Any]) -> float:
    """The relative distance of a result from plain PyTorch's."""
    expected = decoded(case.plain(case.make(0)))
    return float((decoded(run(case.make(0))) - expected).norm() / expected.norm())


def sets_of(case: Case) -> list[Inputs]:
    """Inputs enough that the L2 cache has forgotten the first when the last has been used."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return [case.make(seed) for seed in range(min(128, max(1, math.ceil(3 * cache / case.moved))))]


def measure(case: Case, bandwidth: float, compiled: bool, seconds: float) -> dict[str, Any]:
    """One line of the table."""
    sets = sets_of(case)
    floor = 1e6 * case.moved / bandwidth
    cold, warm = timed(case.run, sets, seconds), timed(case.run, sets[:1], seconds)
    tflops = round(case.operations / cold / 1e6, 1) if case.operations else ""
    plain_us = timed(case.plain, sets, seconds)
    row: dict[str, Any] = {
        "kernel": case.kernel, "variant": case.variant, "batch": case.batch, "shape": case.shape,
        "moved_mb": round(case.moved / 1e6, 2), "floor_us": round(floor, 2), "cold_us": round(cold, 2),
        "of_copy": round(floor / cold, 3), "warm_us": round(warm, 2), "tflops": tflops,
        "error": f"{error(case, case.run):.1e}", "plain_us": round(plain_us, 2),
    }  # fmt: skip
    if compiled:
        torch._dynamo.reset()

        @torch.compile(dynamic=False)
        def plain(inputs: Inputs) -> Any:
            return case.plain(inputs)

        row["compiled_us"] = round(timed(plain, sets, seconds), 2)
    return row


def measure_launches(case: Case, bandwidth: float, seconds: float) -> Iterator[dict[str, Any]]:
    """A line for each way to launch the kernel."""
    sets = sets_of(case)
    for name, run in case.launches.items():
        row = {"kernel": case.kernel, "variant": case.variant, "batch": case.batch, "shape": case.shape, "launch": name}
        cold, warm = timed(run, sets, seconds), timed(run, sets[:1], seconds)
        of_copy = round(1e6 * case.moved / bandwidth / cold, 3)
        row |= {"cold_us": round(cold, 2), "of_copy": of_copy, "warm_us": round(warm, 2)}
        yield row | {"error": f"{error(case, run):.1e}"}
        if name == "chosen":
            with independent():
                cold, warm = timed(run, sets, seconds), timed(run, sets[:1], seconds)
            row |= {"launch": "chosen, independent", "cold_us": round(cold, 2), "warm_us": round(warm, 2)}
            yield row | {"of_copy": round(1e6 * case.moved / bandwidth / cold, 3), "error": ""}


def show(row: dict[str, Any], head: bool) -> None:
    """One line on the terminal, below the names of its columns where it is the first."""
    widths = {key: {"kernel": 8, "variant": 15, "shape": 15, "launch": 19}.get(key, max(8, len(key))) for key in row}
    for cells in ([dict(zip(row, row, strict=True))] if head else []) + [row]:
        print("  ".join(f"{cells[key]!s:>{width}}" for key, width in widths.items()), flush=True)


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default=",".join(KERNELS))
    parser.add_argument("--batches", default="1,32,256")
    parser.add_argument("--width", type=int, default=1024, help="of the model: 192, 384, 768, 1024 (ViT-L), 1280")
    parser.add_argument("--launches", action="store_true", help="compare ways to launch each kernel instead")
    parser.add_argument("--no-compiled", action="store_true", help="leave torch.compile out: it takes seconds a case")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each time that is measured")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    bandwidth = copy_bandwidth(options.seconds)
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    print(f"{machine}; a copy moves {bandwidth / 1e12:.2f} TB/s", flush=True)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for name in options.kernels.split(","):
            for batch in map(int, options.batches.split(",")):
                for case in KERNELS[name](batch, options.width):
                    if options.launches:
                        found = list(measure_launches(case, bandwidth, options.seconds))
                    else:
                        found = [measure(case, bandwidth, not options.no_compiled, options.seconds)]
                    for row in found:
                        show(row, head=not rows)
                        rows.append(row | {"copy_tb_s": round(bandwidth / 1e12, 3), **machine})
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()
