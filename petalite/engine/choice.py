"""The precision of the products in flight: what a device can multiply, what `auto` picks, and why in one sentence.

    choose_compute("auto", "nf4", (9, 0), "cuda")     # Choice("fp8", "nf4 is quantized, and a GPU of compute …")
    choose_compute("fp8", "nf4", (8, 0), "cuda")      # PetaliteError: fp8 needs compute capability 8.9 …

What a checkpoint stores and what is multiplied are two things: quantized weights are expanded once, when they are
loaded, to the precision that the device multiplies fastest. A plain checkpoint keeps its own precision: whoever stores
fp32 wants its answers, not nearly them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from petalite.device import CAPABILITIES, COMPUTES, resolve_compute, unavailable_compute
from petalite.errors import PetaliteError, did_you_mean
from petalite.formats import get_format
from petalite.plan import MIXED, Plan, in_block

#: From here on INT8 is chosen for quantized checkpoints where FP8 is not there. A Turing GPU (7.5) multiplies INT8 too,
#: but the passes around the products weigh more there; neither has been measured on one.
_INT8_PAYS = (8, 0)


@dataclass(frozen=True)
class Choice:
    """A precision, and one sentence that says why it was chosen."""

    compute: str
    why: str


def choose_compute(name: str, format: str, capability: tuple[int, int] | None, device_type: str) -> Choice:
    """The precision of the products for a checkpoint of `format` (as `stored_format` gives it) on a device.

    name: what was asked for, `auto` or one of COMPUTES. capability: of the GPU, (major, minor); None on a CPU, where this
    is what plain modules compute in (`processor.choose_on_cpu` is for the engine there).
    Raises PetaliteError for an unknown name, and for a precision that the device does not multiply.
    """
    if capability is None:
        return choose_module_compute(name, format, torch.device(device_type))
    if name != "auto":
        if name not in COMPUTES:
            known = ", ".join(("auto", *COMPUTES))
            raise PetaliteError(f"unknown compute '{name}'{did_you_mean(name, COMPUTES)}; known: {known}")
        if reason := unavailable_compute(name, capability, device_type):
            raise PetaliteError(reason)
        return Choice(name, f"{name} was asked for")
    gpu = f"a GPU of compute capability {capability[0]}.{capability[1]}"
    if format != MIXED and get_format(format).plain:
        if unavailable_compute(format, capability, device_type) is None:
            return Choice(format, f"the checkpoint is stored in {format} and keeps its precision")
        return Choice("fp16", f"the checkpoint is stored in {format}, which {gpu} does not multiply")
    packed = "its layers are quantized" if format == MIXED else f"{format} is quantized"
    if capability >= CAPABILITIES["fp8"]:
        return Choice("fp8", f"{packed}, and {gpu} multiplies 8-bit floats fastest")
    if capability >= _INT8_PAYS:
        return Choice("int8", f"{packed}, and {gpu} multiplies 8-bit integers fastest")
    return Choice("fp16", f"{packed}, and {gpu} multiplies fp16 fast")


def choose_module_compute(name: str, format: str, device: torch.device) -> Choice:
    """The precision of plain modules, as `resolve_compute` has it and raises, and why."""
    compute = resolve_compute(name, format, device)
    if name != "auto":
        return Choice(compute, f"{name} was asked for")
    if compute == format:
        return Choice(compute, f"the checkpoint is stored in {format} and keeps its precision")
    where = "a CPU" if device.type == "cpu" else "a GPU"
    return Choice(compute, f"{format} runs in plain modules, in the 16 bits that {where} multiplies fast")


def stored_format(plan: Plan) -> str:
    """What a plan stores, for `choose_compute`: its format, or of several that are all plain the most common one."""
    if plan.format != MIXED:
        return plan.format
    inside = [stored for layer, stored in plan.layers.items() if in_block(layer)]
    if inside and all(get_format(stored).plain for stored in inside):
        return Counter(inside).most_common(1)[0][0]
    return MIXED


def plain_dtype(compute: str, capability: tuple[int, int] | None) -> torch.dtype:
    """What stands between the products (residual stream, attention) where they multiply in `compute`."""
    if compute == "fp32":
        return torch.float32
    if compute == "fp16" or (capability is not None and capability < CAPABILITIES["bf16"]):
        return torch.float16
    return torch.bfloat16
