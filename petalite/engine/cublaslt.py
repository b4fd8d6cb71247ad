"""cuBLASLt, called directly: products with what PyTorch's do not offer, and its second and third best kernels too.

    ways = cublaslt.algorithms(a, w, out, residual=x, bias=bias)     # as cuBLASLt ranks them, best first
    cublaslt.multiply(a, w, out, ways[0], scale=scale, bias=bias, residual=x)

out = act(scale · a wᵀ + bias) + residual. The product may end in GELU (in its tanh form, which differs from the exact one
by at most 5e-4), in codes of 8 bits, and in a sum with what stands in memory, also in `out` itself. cuBLASLt's own ranking
is a guess: a trial finds which of the first few is quickest here.

The library is the one that PyTorch has loaded; without it, or with one that lacks a function, `available` says so. The
numbers are those of cublasLt.h, which NVIDIA keeps from version to version.
Source: https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

#: cudaDataType_t
_TYPES = {
    torch.float32: 0,
    torch.float16: 2,
    torch.bfloat16: 14,
    torch.float8_e4m3fn: 28,
}
_COMPUTE_32F = 68
_TRANSPOSED = 1
#: cublasLtMatmulDescAttributes_t
_TRANSPOSE_A, _EPILOGUE, _BIAS, _A_SCALE, _D_SCALE, _FAST_SUMS, _BIAS_TYPE = 3, 7, 8, 17, 20, 25, 26
#: cublasLtEpilogue_t: sums of these
_DEFAULT, _WITH_BIAS, _GELU = 1, 4, 32
#: cublasLtMatmulPreferenceAttributes_t
_MOST_WORKSPACE = 1
#: NVIDIA's advice for Hopper.
_WORKSPACE = 32 << 20

#: What cuBLASLt calls an algorithm, and the bytes of memory that it works in.
Algorithm = tuple[bytes, int]


class _Ranked(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


def available() -> str | None:
    """Why it cannot be called here; None where it can."""
    try:
        _library()
    except (OSError, AttributeError, RuntimeError) as error:  # the last: a PyTorch for CUDA where there is no GPU
        return str(error).splitlines()[0]
    return None


def algorithms(
    a: Tensor,
    w: Tensor,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gelu: bool = False,
    most: int = 8,
) -> list[Algorithm]:
    """Up to `most` algorithms for a product of tensors like these, as `multiply` takes them; none where it has none."""
    key = (a.device, a.dtype, out.dtype, *a.shape, len(w), bias is not None, residual is not None, gelu, most)
    if key not in _ranked:
        _ranked[key] = _rank(a, w, out, bias, residual, gelu, most)
    return _ranked[key]


def multiply(
    a: Tensor,
    w: Tensor,
    out: Tensor,
    algorithm: Algorithm,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gelu: bool = False,
    out_factor: Tensor | None = None,
) -> Tensor:
    """Write act(scale · a wᵀ + bias) + residual to `out` (M, N), on PyTorch's current stream; returns `out`.

    a (M, K), w (N, K): contiguous, both float8_e4m3fn, bfloat16 or float16. scale: float32, one element, of float8 alone.
    bias: (N,) and residual: (M, N), 16-bit, like `out` where that is too; the residual may be `out`.
    out_factor: float32, one element: what values are multiplied with before they are rounded to codes of float8.
    Raises RuntimeError where cuBLASLt refuses.
    """
    library = _library()
    code, size = algorithm
    workspace = torch.empty(size, dtype=torch.uint8, device=a.device) if size else None
    pointers = {_A_SCALE: scale, _BIAS: bias, _D_SCALE: out_factor}
    with torch.cuda.device_of(a), _described(a, w, out, bias, residual, gelu, pointers) as (product, parts):
        one, added = ctypes.c_float(1.0), ctypes.c_float(0.0 if residual is None else 1.0)
        left, right, third, result = parts
        _check(
            library.cublasLtMatmul(
                _handle(a.device.index), product, ctypes.byref(one), _pointer(w), left, _pointer(a), right,
                ctypes.byref(added), _pointer(residual), third, _pointer(out), result,
                ctypes.create_string_buffer(code, len(code)), _pointer(workspace), ctypes.c_size_t(size),
                ctypes.c_void_p(torch.cuda.current_stream(a.device).cuda_stream),
            )
        )  # fmt: skip
    return out


_ranked: dict[Any, list[Algorithm]] = {}
_handles: dict[int, ctypes.c_void_p] = {}
_lock = threading.Lock()


def _rank(
    a: Tensor, w: Tensor, out: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: bool, most: int
) -> list[Algorithm]:
    library = _library()
    # whether there are pointers changes what is possible; where they point does not
    somewhere = torch.ones(1, device=a.device) if a.dtype == torch.float8_e4m3fn else None
    factor = somewhere if out.dtype == torch.float8_e4m3fn else None
    pointers = {_A_SCALE: somewhere, _BIAS: bias, _D_SCALE: factor}
    preference = ctypes.c_void_p()
    _check(library.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)))
    found, count = (_Ranked * most)(), ctypes.c_int()
    try:
        limit = ctypes.c_size_t(_WORKSPACE)
        _check(
            library.cublasLtMatmulPreferenceSetAttribute(
                preference, _MOST_WORKSPACE, ctypes.byref(limit), ctypes.c_size_t(8)
            )
        )
        with torch.cuda.device_of(a), _described(a, w, out, bias, residual, gelu, pointers) as (product, parts):
            status = library.cublasLtMatmulAlgoGetHeuristic(
                _handle(a.device.index), product, *parts, preference, most, found, ctypes.byref(count)
            )
    finally:
        library.cublasLtMatmulPreferenceDestroy(preference)
    if status:
        return []
    return [(bytes(one.algorithm), one.workspace) for one in found[: count.value] if one.state == 0]


@contextmanager
def _described(
    a: Tensor,
    w: Tensor,
    out: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: bool,
    pointers: dict[int, Tensor | None],
) -> Iterator[tuple[ctypes.c_void_p, tuple[ctypes.c_void_p, ...]]]:
    """The product and its four matrices as cuBLASLt wants them: columns first, so outᵀ = wᵀᵀ aᵀ."""
    library = _library()
    (M, K), N = a.shape, len(w)
    product = ctypes.c_void_p()
    _check(library.cublasLtMatmulDescCreate(ctypes.byref(product), _COMPUTE_32F, _TYPES[torch.float32]))
    parts: list[ctypes.c_void_p] = []
    try:
        numbers = {
            _TRANSPOSE_A: ctypes.c_int32(_TRANSPOSED),
            _EPILOGUE: ctypes.c_uint32(
                (_WITH_BIAS if bias is not None else 0) + (_GELU if gelu else 0) or _DEFAULT,
            ),
        }
        if a.dtype == torch.float8_e4m3fn:
            numbers[_FAST_SUMS] = ctypes.c_int8(1)
        if bias is not None:
            numbers[_BIAS_TYPE] = ctypes.c_int32(_TYPES[bias.dtype])
        values: dict[int, Any] = {
            **numbers,
            **{name: ctypes.c_void_p(tensor.data_ptr()) for name, tensor in pointers.items() if tensor is not None},
        }
        for name, value in values.items():
            size = ctypes.c_size_t(ctypes.sizeof(value))
            _check(library.cublasLtMatmulDescSetAttribute(product, name, ctypes.byref(value), size))
        third = residual.dtype if residual is not None else out.dtype if out.dtype.itemsize > 1 else torch.bfloat16
        for dtype, rows, columns in ((w.dtype, K, N), (a.dtype, K, M), (third, N, M), (out.dtype, N, M)):
            part = ctypes.c_void_p()
            _check(
                library.cublasLtMatrixLayoutCreate(
                    ctypes.byref(part), _TYPES[dtype], ctypes.c_uint64(rows), ctypes.c_uint64(columns),
                    ctypes.c_int64(rows),
                )
            )  # fmt: skip
            parts.append(part)
        yield product, tuple(parts)
    finally:
        for part in parts:
            library.cublasLtMatrixLayoutDestroy(part)
        library.cublasLtMatmulDescDestroy(product)


def _handle(device: int) -> ctypes.c_void_p:
    with _lock:
        if device not in _handles:
            handle = ctypes.c_void_p()
            _check(_library().cublasLtCreate(ctypes.byref(handle)))
            _handles[device] = handle
        return _handles[device]


@functools.cache
def _library() -> Any:
    """The library, by the name under which PyTorch has loaded it. Raises OSError or AttributeError."""
    if torch.version.cuda is None:
        raise OSError("this PyTorch has no CUDA")
    torch.ones(16, 16, device="cuda").mm(
        torch.ones(16, 16, device="cuda")
    )  # PyTorch loads its libraries when first used
    library = ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.split('.')[0]}")
    for name in (
        "MatmulDescCreate",
        "MatmulDescSetAttribute",
        "MatmulAlgoGetHeuristic",
        "MatrixLayoutCreate",
        "Matmul",
    ):
        getattr(library, f"cublasLt{name}").restype = ctypes.c_int
    return library


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLASLt refuses, with status {status}")
