"""What a processor multiplies fast, and which precision `auto` picks on it, in one sentence.

    processor = this_processor()
    processor.int8, processor.bf16                        # 'amx', 'amx'
    choose_on_cpu("auto", "int4", calibrated=True, processor=processor)
    # Choice("int8", "int4 is quantized, its inputs are calibrated, and this processor multiplies 8-bit integers by AMX")

A plain checkpoint keeps its precision, as on a GPU. Without VNNI an x86 processor adds pairs of 8-bit products in 16 bits,
which overflow: weights then have 7 bits.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from petalite.errors import PetaliteError, did_you_mean

if TYPE_CHECKING:
    from petalite.engine.choice import Choice

COMPUTES = ("fp32", "bf16", "int8")
_CPUINFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "amd64", "i686")
_ARM = ("aarch64", "arm64")


@dataclass(frozen=True)
class Processor:
    """machine: `x86_64`, `aarch64`, …; name: what it calls itself. int8, bf16: by which instructions, `` for none.

    reduced: whether 8-bit products overflow, so that weights have to be 7 bits wide.
    """

    machine: str
    name: str
    int8: str
    bf16: str
    vectors: str
    reduced: bool

    def describe(self) -> str:
        """One line for people."""
        parts = [self.vectors or self.machine]
        parts += [f"INT8 by {self.int8}"] if self.int8 else []
        parts += [f"BF16 by {self.bf16}"] if self.bf16 else []
        return f"{self.name} ({', '.join(parts)})"


def this_processor(cpuinfo: Path = _CPUINFO, machine: str | None = None) -> Processor:
    """The processor of this machine. What cannot be found out (no /proc/cpuinfo) is taken to be missing."""
    machine = (machine or platform.machine()).lower()
    try:
        text = cpuinfo.read_text()
    except OSError:
        text = ""
    lines = [line.partition(":") for line in text.splitlines()]
    fields = {key.strip().lower(): value.strip() for key, _, value in reversed(lines)}
    name = fields.get("model name") or platform.processor() or machine
    return processor_of(machine, name, (fields.get("flags") or fields.get("features") or "").split())


def processor_of(machine: str, name: str, flags: Iterable[str]) -> Processor:
    """A processor by what Linux calls its abilities."""
    flags = set(flags)

    def first(*names: tuple[str, str]) -> str:
        return next((words for flag, words in names if flag in flags), "")

    if machine in _X86:
        int8 = first(("amx_int8", "AMX"), ("avx512_vnni", "AVX-512 VNNI"), ("avx_vnni", "AVX VNNI"), ("avx2", "AVX2"))
        bf16 = first(("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 BF16"))
        vectors = first(("avx512f", "AVX-512"), ("avx2", "AVX2"), ("sse4_2", "SSE4.2"))
        return Processor(machine, name, int8, bf16, vectors, reduced=int8 in ("", "AVX2"))
    if machine in _ARM:
        int8 = first(("i8mm", "I8MM"), ("asimddp", "dot products"))
        return Processor(machine, name, int8, first(("bf16", "BF16")), first(("sve", "SVE"), ("asimd", "NEON")), False)
    return Processor(machine, name, "", "", "", reduced=True)


def choose_on_cpu(name: str, format: str, calibrated: bool, processor: Processor) -> Choice:
    """The precision of the products for a checkpoint of `format` (as `choice.stored_format` gives it).

    name: what was asked for, `auto` or one of COMPUTES. calibrated: whether its plan has the ranges of its inputs.
    Raises PetaliteError for an unknown name, and for int8 without ranges.
    """
    from petalite.engine.choice import Choice
    from petalite.formats import get_format
    from petalite.plan import MIXED

    if name != "auto":
        if name not in COMPUTES:
            known = ", ".join(("auto", *COMPUTES))
            raise PetaliteError(
                f"the CPU engine does not multiply in '{name}'{did_you_mean(name, COMPUTES)}; it knows {known}"
            )
        if name == "int8" and not calibrated:
            raise PetaliteError(
                "int8 on a CPU needs the ranges that the inputs of products take, which this checkpoint does not have; "
                "quantize it with calibration images, or use bf16 or fp32"
            )
        return Choice(name, f"{name} was asked for")
    if format == "fp32":
        return Choice("fp32", "the checkpoint is stored in fp32 and keeps its precision")
    plain = format != MIXED and get_format(format).plain
    native = f"this processor multiplies bf16 by {processor.bf16}"
    if not plain:
        packed = "its layers are quantized" if format == MIXED else f"{format} is quantized"
        quick = processor.machine in _X86 and processor.int8  # elsewhere it has not been measured
        if calibrated and quick:
            return Choice("int8", f"{packed}, its inputs are calibrated, and this processor multiplies INT8 by {quick}")
        less = "" if calibrated else ", its inputs are not calibrated for int8"
        if processor.bf16:
            return Choice("bf16", f"{packed}{less}, and {native}")
        return Choice("fp32", f"{packed}{less}, and this processor multiplies no shorter numbers natively")
    if processor.bf16:
        return Choice("bf16", f"the checkpoint is stored in {format}, and {native}")
    return Choice("fp32", f"the checkpoint is stored in {format}, which this processor does not multiply natively")
