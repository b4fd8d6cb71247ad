"""Every kernel that the engine would launch or try on a GPU that is not here, compiled for it.

    python -m tests.engine.absent_gpu T4:fp16 L4:fp8:merging:first      # a JSON document, from a process of its own

The engine goes through a pass on tensors that have a shape and a device but no memory (PyTorch's FakeTensor), asks a
stand-in what GPU it is on, and launches nothing: what it would launch is compiled by Triton, which needs no GPU.
`first` leaves out large batches, and all but the first of what trials would choose from. The process must not have
Triton's interpreter switched on.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from petalite.engine import cublaslt, cuda, products
from petalite.engine.bounds import Bounds
from petalite.engine.cuda import OWN_ATTENTION, Fused
from petalite.engine.kernels import launching
from petalite.engine.trial import Trials
from petalite.engine.weights import read_network
from tests.engine.networks import random_checkpoint

#: Images in a batch: each takes products that are cut in other ways.
BATCHES = (1, 256)
_DEVICE = torch.device("cuda", 0)


@dataclass(frozen=True)
class Gpu:
    """What the engine asks of a GPU, under PyTorch's names. shared_memory_per_block_optin: bytes that a program may have."""

    capability: tuple[int, int]
    multi_processor_count: int
    shared_memory_per_block_optin: int


GPUS = {
    "T4": Gpu((7, 5), 40, 64 * 1024),
    "A100": Gpu((8, 0), 108, 163 * 1024),
    "A10": Gpu((8, 6), 72, 99 * 1024),
    "L4": Gpu((8, 9), 58, 99 * 1024),
    "H100": Gpu((9, 0), 132, 227 * 1024),
}


class _Collected:
    """Takes the place of what compiles kernels beside each other: keeps them."""

    def __init__(self) -> None:
        self.kernels: dict[Any, tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = {}

    def later(self, kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        args = tuple(map(launching._without_memory, args))
        names = [param.name for param in kernel.params if param.is_constexpr]
        constant = [options.get(name) for name in names] + list(args[len(kernel.params) - len(names) :])
        kinds = [getattr(one, "base", one).dtype for one in args if hasattr(getattr(one, "base", one), "dtype")]
        key = (id(kernel), *constant, *kinds, *options.items())  # other numbers of rows are compiled alike
        self.kernels.setdefault(key, (kernel, grid, args, options))


class _Asked(Trials):
    """`every`: whatever would be tried is asked to run."""

    def __init__(self, every: bool) -> None:
        super().__init__(None, lambda runs: dict.fromkeys(runs, 0.0))
        self.every = every

    def expect(self, key: str, candidates: Mapping[str, Callable[[], Any]]) -> str:
        for run in candidates.values() if self.every else ():
            run()
        return super().expect(key, candidates)


def compiled(gpu: Gpu, compute: str, batch: int, merge: tuple[int, ...], every: bool) -> list[dict[str, Any]]:
    """A row for each kernel: its name, and why it does not run on such a GPU, or None."""
    with _in_its_place(gpu), tempfile.TemporaryDirectory() as folder:
        checkpoint = random_checkpoint(
            Path(folder) / "vit", img_size=224, patch_size=16, embed_dim=128, num_heads=2, depth=3
        )
        network = read_network(replace(checkpoint, plan=replace(checkpoint.plan, merge=merge)))
        collected = _Collected()
        launching._COMPILING.set(collected)  # type: ignore[arg-type]
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            pixels = torch.empty(batch, 3, *network.shape.image_size, dtype=torch.uint8, device=_DEVICE)
            attention = "auto" if compute == "fp32" else OWN_ATTENTION
            fused = Fused(_without_memory(network, mode), _DEVICE, compute, attention, _Asked(every))
            logits = fused(pixels)
        assert logits.shape == (batch, network.shape.classes) and logits.device == _DEVICE
        return [{"kernel": one[0].fn.__name__, "reason": _refused(gpu, *one)} for one in collected.kernels.values()]


def _refused(
    gpu: Gpu, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]
) -> str | None:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Triton prints what it could not assemble
            needed = kernel.warmup(*args, grid=grid, **options).metadata.shared
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip()[:300]}"
    most = gpu.shared_memory_per_block_optin
    return None if needed <= most else f"{needed} bytes of shared memory, where a program may have {most}"


@contextlib.contextmanager
def _in_its_place(gpu: Gpu) -> Iterator[None]:
    """What PyTorch, cuBLASLt and Triton say of the GPU, and tensors without memory that never ask a driver."""
    import triton
    from triton.backends.compiler import GPUTarget

    major, minor = gpu.capability

    class Driver:
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 10 * major + minor, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    triton.runtime.driver.set_active(Driver())
    bounded = Bounds(qkv=9.0, heads=20.0, proj=14.0, fc1=11.0, fc2=38.0)
    stand_ins: list[tuple[Any, str, Any]] = [
        *((torch.cuda, name, contextlib.nullcontext) for name in ("device", "device_of")),
        (torch.cuda, "get_device_capability", lambda _=None: gpu.capability),
        (torch.cuda, "get_device_properties", lambda _=None: gpu),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "is_current_stream_capturing", lambda: False),
        (cuda, "compile_together", lambda runs, device: None),  # the pass itself is all that is compiled
        (cuda, "bounds", lambda block: bounded),
        (products, "even", lambda weight: True),
        (cublaslt, "available", lambda: None),
        (cublaslt, "algorithms", lambda *_, **__: [None]),
        (cublaslt, "multiply", lambda a, w, out, *_, **__: out),
        (torch, "tensor", _unknown),
        (FakeTensor, "data_ptr", lambda self: 4096 + self.storage_offset() * self.element_size()),
        (FakeTensor, "__getitem__", _part),
        (FakeTensor, "__setitem__", lambda self, place, values: None),
        (FakeTensor, "reshape", lambda self, *shape: torch.ops.aten.reshape(self, list(shape))),
        (FakeTensor, "copy_", lambda self, other: self),
        (FakeTensor, "contiguous", lambda self: torch.ops.aten.contiguous(self)),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, value in stand_ins:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


_known = torch.tensor


def _unknown(values: Any, dtype: torch.dtype | None = None, device: Any = None) -> torch.Tensor:
    """Of the shape that `torch.tensor` would give."""
    real = _known(values, dtype=dtype)
    return torch.empty(real.shape, dtype=real.dtype, device=device)


def _part(tensor: torch.Tensor, place: Any) -> torch.Tensor:
    """`tensor[place]` by operators that need no driver, as Python's own indexing does."""
    places = place if isinstance(place, tuple) else (place,)
    if Ellipsis in places:
        at = places.index(Ellipsis)
        missing = tensor.ndim - sum(one is not None and one is not Ellipsis for one in places)
        places = (*places[:at], *[slice(None)] * missing, *places[at + 1 :])
    axis = 0
    for one in places:
        if one is None:
            tensor = tensor.unsqueeze(axis)
        elif isinstance(one, int):
            tensor = torch.ops.aten.select(tensor, axis, one)
            continue
        elif one != slice(None):
            first, last, step = one.indices(tensor.shape[axis])
            tensor = torch.ops.aten.slice(tensor, axis, first, last, step)
        axis += 1
    return tensor


def _without_memory(value: Any, mode: FakeTensorMode) -> Any:
    """A network (or a part of one) whose tensors only have shapes."""
    if isinstance(value, torch.Tensor):
        return mode.from_tensor(value)
    if isinstance(value, tuple):
        return tuple(_without_memory(one, mode) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {one.name: _without_memory(getattr(value, one.name), mode) for one in fields(value)}
        return replace(value, **parts)
    return value


def _case(case: str) -> list[dict[str, Any]]:
    name, compute, *how = case.split(":")
    merge, every = (0, 16, 0) if "merging" in how else (), "first" not in how
    found = []
    for batch in BATCHES if every else BATCHES[:1]:
        rows = compiled(GPUS[name], compute, batch, merge, every)
        found += [{"gpu": name, "compute": compute, "batch": batch, **row} for row in rows]
    return found


def main(cases: list[str]) -> None:
    """Print the rows of each `GPU:compute[:merging][:first]`."""
    # a process for each: Triton and the engine ask once what the first GPU is
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        print(json.dumps([row for rows in pool.map(_case, cases, chunksize=1) for row in rows]))


if __name__ == "__main__":
    main(sys.argv[1:])
