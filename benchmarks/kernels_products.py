"""Every way to cut the products and the attention of ViT-L, timed beside cuBLAS, cuDNN and FlashAttention.

    python benchmarks/kernels_products.py --out products.csv                    # batches 1, 8, 32, 256, about two minutes
    python benchmarks/kernels_products.py --only fc1,attention --batch 256 --dtypes fp8

A time is the median over replays of a CUDA graph, divided by its launches, which take turns over so many inputs and
weights that none is still in the L2 cache. Every way is compared with float64 on some rows. What cannot be compiled or
run says why, and the rest goes on. At the end: the best config of each shape, as Python.

Compilation takes longer than timing, so processes without a GPU fill Triton's cache on disk first, all at once.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from result_files import write_rows
from torch import Tensor

from petalite.attention import BACKENDS
from petalite.engine.kernels.attention import Config as AttentionConfig
from petalite.engine.kernels.attention import attention
from petalite.engine.kernels.attention import configs as attention_configs
from petalite.engine.kernels.gelu import gelu
from petalite.engine.kernels.product import product
from petalite.engine.kernels.quantize import quantize
from petalite.engine.kernels.tiles import Config, configs

TOKENS, HEADS, SIZE = 197, 16, 64
BF16 = torch.bfloat16
DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "bf16": BF16}
#: Outputs, inputs, and what the product's end does in the engine.
LAYERS = {"qkv": (3072, 1024), "proj": (1024, 1024), "fc1": (4096, 1024), "fc2": (1024, 4096)}
_CACHE_BYTES = 200 << 20  # inputs that a graph goes through, several times the L2 cache
_LAUNCHES, _MOST_SETS = 20, 40
_CHECKED_ROWS = 64


@dataclass(frozen=True)
class Way:
    """One way to compute a shape: its name, the config if it is ours, and what it calls with one set of inputs."""

    name: str
    config: Any
    call: Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Shape:
    """A layer at a batch size, in one precision. work: operations of one call."""

    layer: str
    batch: int
    dtype: str
    work: float

    @property
    def rows(self) -> int:
        return self.batch * TOKENS


def shapes(options: argparse.Namespace) -> Iterator[Shape]:
    for batch in options.batch:
        for dtype in options.dtypes:
            for layer, (N, K) in LAYERS.items():
                if layer in options.only:
                    yield Shape(layer, batch, dtype, 2.0 * batch * TOKENS * N * K)
            if "attention" in options.only and dtype != "int8":
                yield Shape("attention", batch, dtype, 4.0 * batch * HEADS * TOKENS**2 * SIZE)


def inputs(shape: Shape, seed: int, device: str) -> dict[str, Tensor]:
    """One set: codes near those of a trained model (normal, a sixth of their range), and scales that bring outputs near 1."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    step = torch.tensor([0.02], device=device)
    if shape.layer == "attention":
        return {"qkv": normal(shape.batch, TOKENS, 3 * HEADS * SIZE).to(BF16), "step": step}
    N, K = LAYERS[shape.layer]
    dtype = DTYPES[shape.dtype]
    unit = 1.0 if dtype == BF16 else 20.0

    def coded(*size: int) -> Tensor:
        values = normal(*size) * unit
        return (values.round().clamp(-127, 127) if dtype == torch.int8 else values).to(dtype)

    made = {"a": coded(shape.rows, K), "w": coded(N, K), "bias": normal(N), "step": step}
    if dtype == BF16:
        made["w"] *= K**-0.5
    made["a_scale"] = torch.full((shape.rows,), 1 / unit, device=device)
    made["w_scale"] = torch.full((N,), K**-0.5 / unit, device=device)
    made["plain_bias"] = made["bias"].to(BF16)
    if shape.layer in ("proj", "fc2"):
        made["residual"] = normal(shape.rows, N).to(BF16)
    return made


def bytes_of(made: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in made.values())


def ours(shape: Shape, config: Any, made: dict[str, Tensor]) -> Tensor:
    """As the engine calls it: scales for each row (qkv, fc1) or folded into those of the columns; GELU's codes (fc1)."""
    dtype = DTYPES[shape.dtype]
    if shape.layer == "attention":
        codes = dtype != BF16
        return attention(made["qkv"], HEADS, dtype=dtype, scale=made["step"] if codes else None, config=config)
    written = dtype if shape.layer == "fc1" else BF16
    by_row = shape.layer in ("qkv", "fc1") and dtype != BF16
    return product(
        made["a"], made["w"], a_scale=made["a_scale"] if by_row else None,
        w_scale=None if dtype == BF16 else made["w_scale"], bias=made["bias"],
        activation="gelu" if shape.layer == "fc1" else None, residual=made.get("residual"),
        dtype=written, out_scale=made["step"] if written != BF16 else None, config=config,
    )  # fmt: skip


def own_ways(shape: Shape, capability: tuple[int, int], options: argparse.Namespace) -> list[Way]:
    if shape.layer == "attention":
        found: tuple[Any, ...] = attention_configs(shape.batch, TOKENS, HEADS, SIZE)
    else:
        N, K = LAYERS[shape.layer]
        found = configs(shape.rows, N, K, DTYPES[shape.dtype], capability)
    return [Way(str(config), config, lambda made, config=config: ours(shape, config, made)) for config in found]


def library_ways(shape: Shape) -> list[Way]:
    """What PyTorch's libraries offer; with what they leave to a pass of its own where the name says so."""
    ways: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {}
    if shape.layer == "attention":

        def attend(backend: str, codes: bool, made: dict[str, Tensor]) -> Tensor:
            B = made["qkv"].shape[0]
            query, key, value = made["qkv"].view(B, TOKENS, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
            out = BACKENDS[backend].attend(query, key, value).transpose(1, 2).reshape(B * TOKENS, -1)
            return quantize(out, torch.float8_e4m3fn, made["step"])[0] if codes else out

        for name, backend in (("cudnn", "cudnn"), ("flash", "fa2")):
            ways[name] = lambda made, backend=backend: attend(backend, False, made)
            if shape.dtype != "bf16":
                ways[f"{name} + quantize"] = lambda made, backend=backend: attend(backend, True, made)
    elif shape.dtype == "bf16":
        ways["linear"] = lambda made: F.linear(made["a"], made["w"], made["plain_bias"])
        if shape.layer == "fc1":
            ways["linear + gelu"] = lambda made: gelu(ways["linear"](made), dtype=BF16)[0]
    elif shape.dtype == "int8":
        ways["_int_mm"] = lambda made: torch._int_mm(made["a"], made["w"].t())
    else:
        one = torch.ones(1, device="cuda")

        def scaled(a: Tensor, b: Tensor, made: dict[str, Tensor], **more: Any) -> Tensor:
            y: Tensor = torch._scaled_mm(made["a"], made["w"].t(), scale_a=a, scale_b=b, **more)
            return y

        for fast in (True, False):
            end = "" if fast else " exact"
            ways[f"_scaled_mm tensor{end}"] = lambda made, fast=fast: scaled(
                one, one, made, bias=made["plain_bias"], out_dtype=BF16, use_fast_accum=fast
            )
            ways[f"_scaled_mm rows{end}"] = lambda made, fast=fast: scaled(
                made["a_scale"][:, None], made["w_scale"][None], made,
                bias=made["plain_bias"], out_dtype=BF16, use_fast_accum=fast,
            )  # fmt: skip
        ways["_scaled_mm tensor to fp8"] = lambda made: scaled(
            one, one, made, scale_result=one, out_dtype=torch.float8_e4m3fn, use_fast_accum=True
        )
        if shape.layer == "fc1":
            ways["_scaled_mm rows + gelu"] = lambda made: gelu(
                ways["_scaled_mm rows"](made), dtype=torch.float8_e4m3fn, scale=made["step"]
            )[0]
    return [Way(name, None, call) for name, call in ways.items()]


def error_of(shape: Shape, made: dict[str, Tensor], found: Tensor) -> float:
    """Relative distance from float64, on the first and the last rows. Codes are rounded, so theirs is not small."""
    some = slice(0, _CHECKED_ROWS), slice(shape.rows - _CHECKED_ROWS, shape.rows)
    if shape.layer == "attention":
        qkv = torch.cat((made["qkv"][:1], made["qkv"][-1:])).double()
        query, key, value = qkv.view(2, TOKENS, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        both = BACKENDS["math"].attend(query, key, value).transpose(1, 2).reshape(2 * TOKENS, -1)
        wanted, got = both, torch.cat((found[:TOKENS], found[-TOKENS:])).double()
    else:
        parts = []
        for rows in some:
            y = made["a"][rows].double() @ made["w"].double().T
            y = y if shape.dtype == "bf16" else y * made["w_scale"].double()
            if shape.layer in ("qkv", "fc1") and shape.dtype != "bf16":
                y = y * made["a_scale"][rows].double()[:, None]
            y = y + made["bias"].double()
            y = F.gelu(y) if shape.layer == "fc1" else y
            parts.append(y + made["residual"][rows].double() if "residual" in made else y)
        wanted, got = torch.cat(parts), torch.cat([found[rows] for rows in some]).double()
    got = got * made["step"].double() if found.itemsize == 1 else got
    return float((got - wanted).norm() / wanted.norm())


def microseconds(way: Way, sets: list[dict[str, Tensor]]) -> float:
    """Median over replays of a graph whose launches take turns over the sets."""
    launches = -(-_LAUNCHES // len(sets)) * len(sets)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(launches):
            way.call(sets[index % len(sets)])
    graph.replay()
    times = []
    while len(times) < 4 or (sum(times) < 4.0 and len(times) < 40):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return 1e3 * median(times) / launches


def compile_ahead(jobs: list[tuple[Shape, Any]], capability: tuple[int, int], workers: int) -> dict[int, str]:
    """Fill Triton's cache by processes that never touch the GPU; returns for some jobs why they cannot be compiled.

    A compiler that aborts takes its process along: the job is named, the rest go to a new process.
    """
    context = multiprocessing.get_context("fork")
    left, reasons = list(range(len(jobs))), dict[int, str]()
    while left:
        reports = []
        for first in range(min(workers, len(left))):
            receiver, sender = context.Pipe(duplex=False)
            context.Process(target=_compile, args=(jobs, left[first::workers], capability, sender)).start()
            sender.close()
            reports.append(receiver)
        for receiver in reports:  # each holds what its process sends until it is asked
            with contextlib.suppress(EOFError):
                while True:
                    index, reason = receiver.recv()
                    left = [other for other in left if other != index]
                    reasons.update({index: reason})
    return {index: reason for index, reason in reasons.items() if reason}


def _compile(jobs: list[tuple[Shape, Any]], share: list[int], capability: tuple[int, int], reports: Any) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class NoGPU:
        """What Triton asks of a driver to compile."""

        get_current_target = staticmethod(lambda: GPUTarget("cuda", 10 * capability[0] + capability[1], 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what an aborting compiler prints
    triton.runtime.driver.set_active(NoGPU())
    run = JITFunction.run
    JITFunction.run = lambda self, *args, grid, warmup, **rest: run(self, *args, grid=grid, warmup=True, **rest)
    for index in share:
        shape, config = jobs[index]
        reports.send((index, "the compiler aborted"))
        try:
            ours(shape, config, inputs(replace(shape, batch=min(shape.batch, 16)), 0, "cpu"))
            reports.send((index, ""))
        except Exception as error:
            reports.send((index, f"{type(error).__name__}: {str(error).strip()[:200]}"))


def measure(shape: Shape, ways: list[Way], skipped: dict[str, str]) -> Iterator[dict[str, Any]]:
    """A row for each way."""
    sets = [inputs(shape, 0, "cuda")]
    count = min(_MOST_SETS, max(2, -(-_CACHE_BYTES // bytes_of(sets[0]))))
    sets += [inputs(shape, seed, "cuda") for seed in range(1, count)]
    for way in ways:
        row = {"layer": shape.layer, "batch": shape.batch, "dtype": shape.dtype, "way": way.name}
        reason = skipped.get(way.name, "") if way.config is not None else ""
        if not reason:
            try:
                found = way.call(sets[0])
                torch.cuda.synchronize()
                error = error_of(shape, sets[0], found) if way.config is not None else float("nan")
                del found
                took = microseconds(way, sets)
                yield {
                    **row,
                    "us": round(took, 2),
                    "tflops": round(shape.work / took / 1e6, 1),
                    "error": f"{error:.1e}",
                }
                continue
            except Exception as failure:
                reason = f"{type(failure).__name__}: {str(failure).strip()[:200]}"
        yield {**row, "reason": reason}


def python_of(config: Any) -> str:
    """The config as it is written in Python, without what is at rest."""
    rest = AttentionConfig() if isinstance(config, AttentionConfig) else Config(0, 0)
    fields = {name: value for name, value in vars(config).items() if value != getattr(rest, name)}
    return f"Config({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


def main() -> None:
    """Measure, print the best of each shape, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="qkv,proj,fc1,fc2,attention", type=lambda text: text.split(","))
    parser.add_argument("--batch", default="1,8,32,256", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--dtypes", default="fp8,int8,bf16", type=lambda text: text.split(","))
    parser.add_argument("--workers", type=int, default=min(14, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    capability = torch.cuda.get_device_capability()
    todo = list(shapes(options))
    # what starts ahead is compiled for a GPU only, so when it is first called
    jobs = [
        (shape, way.config)
        for shape in todo
        for way in own_ways(shape, capability)
        if capability == (9, 0) and not way.config.dependent
    ]
    reasons = compile_ahead(jobs, capability, options.workers)
    skipped = {(jobs[index][0], str(jobs[index][1])): reason for index, reason in reasons.items()}
    print(f"{len(jobs)} kernels compiled after {time.perf_counter() - started:.0f} s", flush=True)
    rows: list[dict[str, Any]] = []
    best: dict[Shape, tuple[float, Any]] = {}
    for shape in todo:
        own = own_ways(shape, capability)
        refused = {name: reason for (other, name), reason in skipped.items() if other == shape}
        found = list(measure(shape, [*library_ways(shape), *own], refused))
        rows += found
        for row in sorted(found, key=lambda row: row.get("us", float("inf"))):
            timed = (
                f"{row['us']:9.2f} us {row['tflops']:7.1f} TFLOP/s  error {row['error']}"
                if "us" in row
                else row["reason"]
            )
            print(f"{shape.dtype:4} {shape.layer:9} {shape.batch:3}  {row['way']:52} {timed}", flush=True)
        times = {way.name: way.config for way in own}
        timed_rows = [row for row in found if "us" in row and row["way"] in times]
        if timed_rows:
            quickest = min(timed_rows, key=lambda row: row["us"])
            best[shape] = (quickest["us"], times[quickest["way"]])
    print("\nBEST = {  # (precision, layer, batch): config  # microseconds")
    for shape, (took, config) in best.items():
        print(f"    ({shape.dtype!r}, {shape.layer!r}, {shape.batch}): {python_of(config)},  # {took:.1f}")
    print(f"}}\n{time.perf_counter() - started:.0f} s")
    if options.out:
        write_rows(options.out, rows, ["layer", "batch", "dtype", "way", "us", "tflops", "error", "reason"])


if __name__ == "__main__":
    main()
