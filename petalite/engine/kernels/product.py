"""A matrix product whose end does the rest: scales, bias, GELU, the residual, and rounding to what comes next.

    y = product(codes, weight, a_scale=row, w_scale=column, bias=bias, dtype=torch.bfloat16)
    codes = product(codes, weight, w_scale=column, bias=bias, activation="gelu", dtype=torch.float8_e4m3fn, out_scale=step)

out = act(sum · a_scale · w_scale + bias) + residual, where `sum` is over float8 codes (in float32), int8 codes (exactly,
in int32) or 16-bit values (in float32). How the product is cut into tiles is a `Config` (tiles.py); the results of all
of them agree to rounding, and each gives the same bits every time.

On Hopper the tensor cores add products of float8 to sums of 14 significant bits, not 24. On an H200 that is a relative
error of 4e-4 for sums of 1,024 normally distributed terms and of 1.2e-3 for 4,096, below that of writing the result in
bfloat16 (1.7e-3) and far below that of the codes; libraries multiply so by default (`use_fast_accum` of PyTorch).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from petalite.engine.kernels import tiled
from petalite.engine.kernels.gelu import activation as gelu_for
from petalite.engine.kernels.quantize import CODES, PLAIN
from petalite.engine.kernels.tiles import Config, configs, default

__all__ = ["Config", "configs", "product"]

_FACTORS = {torch.float8_e4m3fn, torch.int8, torch.bfloat16, torch.float16}
_HOPPER = (9, 0)


def product(
    a: Tensor,
    w: Tensor,
    *,
    a_scale: Tensor | None = None,
    w_scale: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype,
    out_scale: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """a (M, K) times w (N, K) transposed -> (M, N) of `dtype`; a row of `w` is an output channel.

    a, w: both float8_e4m3fn, both int8, both bfloat16 or both float16; K a multiple of 16.
    a_scale: float32, one for all or (M,). w_scale: float32 (N,). bias: (N,), floating point. residual: (M, N), likewise.
    activation: None or "gelu". out_scale: float32, one element: what a step of the codes is worth where `dtype` is 8-bit.
    config: how the product is cut; by the shape alone when None. A GPU must have run it once before a CUDA graph does.
    Raises ValueError for tensors that do not fit, and for a config that the device cannot run.
    """
    _check(a, w, a_scale, w_scale, bias, activation, residual, dtype, out_scale)
    M, K = a.shape
    N = len(w)
    out = torch.empty(M, N, dtype=dtype, device=a.device)
    if M == 0:
        return out
    capability = _capability(a.device)
    config = config or default(M, N, K, a.dtype, capability)
    function = None if activation is None else gelu_for("none", dtype)
    by_row = a_scale is not None and a_scale.numel() > 1
    epilogue = (residual, bias, a_scale, w_scale, out_scale)
    with torch.cuda.device_of(a):
        tiled.launch(a, w, out, epilogue, function, by_row, config, _multiprocessors(a.device))
    return out


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else _HOPPER


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _check(
    a: Tensor,
    w: Tensor,
    a_scale: Tensor | None,
    w_scale: Tensor | None,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    dtype: torch.dtype,
    out_scale: Tensor | None,
) -> None:
    if a.ndim != 2 or w.ndim != 2 or a.shape[1] != w.shape[1] or a.dtype != w.dtype or a.dtype not in _FACTORS:
        raise ValueError(
            "expected (M, K) and (N, K), both float8_e4m3fn, int8, bfloat16 or float16, "
            f"got {a.dtype} {tuple(a.shape)} and {w.dtype} {tuple(w.shape)}"
        )
    (M, K), N = a.shape, len(w)
    if K % 16 or K == 0 or N == 0:
        raise ValueError(f"K has to be a multiple of 16, and N not 0; they are {K} and {N}")
    if activation not in (None, "gelu"):
        raise ValueError(f"the only activation is 'gelu', not '{activation}'")
    if dtype not in CODES + PLAIN:
        raise ValueError(f"cannot write {dtype}; one of {', '.join(map(str, CODES + PLAIN))}")
    if (out_scale is not None) != (dtype in CODES):
        raise ValueError(f"{dtype} {'needs an' if dtype in CODES else 'takes no'} out_scale")
    shapes = {
        "a_scale": (a_scale, ((), (1,), (M,)), (torch.float32,)),
        "w_scale": (w_scale, ((N,),), (torch.float32,)),
        "bias": (bias, ((N,),), PLAIN),
        "residual": (residual, ((M, N),), PLAIN),
        "out_scale": (out_scale, ((), (1,)), (torch.float32,)),
    }
    for name, (tensor, fitting, dtypes) in shapes.items():
        if tensor is not None and (tuple(tensor.shape) not in fitting or tensor.dtype not in dtypes):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)} for a product of {(M, N, K)}")
    for tensor in (a, w, a_scale, w_scale, bias, residual, out_scale):
        if tensor is not None and (tensor.device != a.device or not tensor.is_contiguous()):
            raise ValueError(f"expected contiguous tensors on {a.device}, got one on {tensor.device}")
    if a.data_ptr() % 16 or w.data_ptr() % 16:
        raise ValueError("a and w have to start at multiples of 16 bytes")
