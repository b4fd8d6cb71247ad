"""Kernels launched; or compiled only, many beside each other, before the first of them is needed.

    launched(_norm, (rows,))(x, out, columns, num_warps=4)      # as _norm[(rows,)](…)
    compile_together([run, another], device)                 # all kernels that these would launch are ready, none has run

Compiling a kernel takes a tenth of a second to some seconds, most of it in LLVM and in programs of their own, which do not
hold each other up. A pass that launches its kernels one after the other waits for the sum of that, and a trial between twenty
of them for much more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from petalite.data.workers import available_cores

#: Each holds some 200 MB while it compiles.
_MOST_AT_ONCE = 16


def launched(kernel: Any, grid: tuple[int, ...]) -> Callable[..., Any]:
    """What launches `kernel`, a function of `triton.jit`, with this grid. Inside `compile_together` it is compiled only."""
    compiling = _COMPILING.get()
    launch: Callable[..., Any] = kernel[grid] if compiling is None else partial(compiling.later, kernel, grid)
    return launch


def compile_together(runs: Iterable[Callable[[], object]], device: torch.device) -> None:
    """Compile what each of `runs` would launch on a GPU, and load it there; nothing is done for a CPU.

    Everything else in them happens: their results are of the right shape, and hold anything. One that raises is left as far
    as it came, and a kernel that cannot be compiled is left out: whoever launches it finds out.
    """
    if device.type != "cuda":
        return
    with ThreadPoolExecutor(min(_MOST_AT_ONCE, available_cores())) as pool:
        before = _COMPILING.set(_Compiling(pool, device))
        try:
            for run in runs:
                with suppress(Exception):
                    run()
        finally:
            _COMPILING.reset(before)


def compiling() -> bool:
    """Whether kernels are compiled only, so that no result means anything."""
    return _COMPILING.get() is not None


@dataclass(frozen=True)
class _Pointer:
    """What the compiler wants to know of a tensor; it must not be kept from being freed."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        return self.address


class _Compiling:
    """Kernels that are being compiled for one device, each once."""

    def __init__(self, pool: ThreadPoolExecutor, device: torch.device) -> None:
        self._pool, self._device, self._seen = pool, device, set[Any]()

    def later(self, kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        args = tuple(map(_without_memory, args))
        seen = (id(kernel), *map(_told_apart, args), *options.items())
        if seen not in self._seen:
            self._seen.add(seen)
            self._pool.submit(self._now, kernel, grid, args, options)

    def _now(self, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        with torch.cuda.device(self._device):
            _ = kernel.warmup(*args, grid=grid, **options).run  # asking for it loads it


def _without_memory(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return _Pointer(argument.dtype, argument.data_ptr() % 16)
    if hasattr(argument, "block_shape"):  # Triton's description of a matrix
        return replace(argument, base=_without_memory(argument.base))
    return argument


def _told_apart(argument: Any) -> Any:
    return (argument.base, *argument.block_shape) if hasattr(argument, "block_shape") else argument


_COMPILING: ContextVar[_Compiling | None] = ContextVar("compiling", default=None)
