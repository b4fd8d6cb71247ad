"""What runs on a device, found by trying: each format, attention backend and precision on a tiny input.

    formats_here(torch.device("cpu"))["nf4"]        # None: it runs; else a line that says why not and what to do

A package that is installed but broken is found here, rather than in the middle of a study.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from petalite.attention import BACKENDS, Backend
from petalite.device import COMPUTES, capability_of, resolve_compute, unavailable_compute
from petalite.engine import ENGINES, engine_missing
from petalite.errors import PetaliteError
from petalite.formats import FORMATS, Format
from petalite.formats.plain import DTYPES


def compute_here(device: torch.device) -> dict[str, str | None]:
    """For each precision None, or why no matrix product runs in it."""
    capability = capability_of(device)
    return {
        name: unavailable_compute(name, capability, device.type) or _trial(partial(_try_compute, device, name))
        for name in COMPUTES
    }


def engines_here(device: torch.device) -> dict[str, str | None]:
    """For each engine None, or why it runs no checkpoint here."""
    return {
        name: None if name == "module" else engine_missing(name, device) or _trial(partial(_try_engine, name))
        for name in ENGINES
        if name != "auto"
    }


def formats_here(device: torch.device) -> dict[str, str | None]:
    """For each weight format None, or why a layer stored in it does not run."""
    return {
        format.name: format.missing(device) or _trial(partial(_try_format, format, device))
        for format in FORMATS.values()
    }


def attention_here(device: torch.device) -> dict[str, dict[str, str | None]]:
    """For each attention backend and precision None, or why it does not run."""
    return {
        backend.name: {
            name: backend.unavailable(device, dtype) or _trial(partial(_try_attention, backend, device, dtype))
            for name, dtype in DTYPES.items()
        }
        for backend in BACKENDS.values()
    }


def _trial(attempt: Callable[[], None]) -> str | None:
    """None when `attempt` works, else a line that says how it failed."""
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            attempt()
    except PetaliteError as error:
        return str(error)
    except Exception as error:  # whatever a broken package raises is what the reader needs to see
        lines = str(error).strip().splitlines() or [""]
        return f"a small trial failed: {type(error).__name__}: {lines[0][:200]}"
    return None


def _try_compute(device: torch.device, name: str) -> None:
    ones = torch.ones(64, 64, device=device)
    if name == "fp8":
        codes, one = ones.to(torch.float8_e4m3fn), torch.ones((), device=device)
        torch._scaled_mm(codes, codes.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16).sum().item()
    elif name == "int8":
        torch._int_mm(ones.to(torch.int8), ones.to(torch.int8)).sum().item()
    else:
        nn.functional.linear(ones.to(DTYPES[name]), ones.to(DTYPES[name])).sum().item()


def _try_engine(name: str) -> None:
    if name == "openvino":  # Triton compiles too long for a trial
        from petalite.engine.openvino_runtime import core, op, ov

        x = op.parameter([1, 4], ov.Type.f32)
        core().compile_model(ov.Model([op.relu(x)], [x], "trial"), "CPU")


def _try_attention(backend: Backend, device: torch.device, dtype: torch.dtype) -> None:
    query = torch.zeros(1, 2, 17, 64, device=device, dtype=dtype)
    backend.attend(query, query, query).sum().item()


def _try_format(format: Format, device: torch.device) -> None:
    """Pack, build and multiply, in the precision that a checkpoint of that format would run in here."""
    dtype = DTYPES[resolve_compute("auto", format.name, device)]
    weight = torch.linspace(-1, 1, 128 * 128).view(128, 128)
    layer = format.build(format.pack(weight), None, dtype, device)
    out = layer(torch.ones(2, 128, device=device, dtype=dtype))
    if not torch.isfinite(out).all():
        raise PetaliteError(
            f"{format.name} multiplied to infinity or NaN; report this with the text of petalite doctor"
        )
