"""What a processor multiplies, from what Linux says of it, and what `auto` makes of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from petalite.engine.processor import choose_on_cpu, processor_of, this_processor
from petalite.errors import PetaliteError

AMX = processor_of("x86_64", "Xeon", ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"])
ZEN = processor_of("x86_64", "Ryzen", ["avx2", "avx512f", "avx512_vnni", "avx512_bf16"])
OLD = processor_of("x86_64", "Core", ["avx2"])
ARM = processor_of("aarch64", "Neoverse", ["asimd", "asimddp", "i8mm", "bf16", "sve"])


def test_flags_become_abilities() -> None:
    assert (AMX.int8, AMX.bf16, AMX.reduced) == ("AMX", "AMX", False)
    assert (ZEN.int8, ZEN.bf16, ZEN.reduced) == ("AVX-512 VNNI", "AVX-512 BF16", False)
    assert (OLD.int8, OLD.bf16, OLD.reduced) == ("AVX2", "", True)
    assert (ARM.int8, ARM.bf16, ARM.vectors, ARM.reduced) == ("I8MM", "BF16", "SVE", False)
    assert processor_of("riscv64", "?", []).int8 == ""
    assert AMX.describe() == "Xeon (AVX-512, INT8 by AMX, BF16 by AMX)"


def test_the_first_core_speaks_for_all(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor : 0\nmodel name : A B\nflags : avx2 avx_vnni\n\nprocessor : 1\nmodel name : C\nflags : sse\n"
    )
    found = this_processor(info, "x86_64")
    assert (found.name, found.int8, found.vectors) == ("A B", "AVX VNNI", "AVX2")
    assert this_processor(tmp_path / "none", "x86_64").reduced


@pytest.mark.parametrize(
    ("format", "calibrated", "processor", "compute"),
    [
        ("fp32", True, AMX, "fp32"),
        ("bf16", True, AMX, "bf16"),
        ("fp16", False, OLD, "fp32"),
        ("int4", True, AMX, "int8"),
        ("nf4", True, ZEN, "int8"),
        ("mixed", True, OLD, "int8"),
        ("int4", False, AMX, "bf16"),
        ("int4", False, OLD, "fp32"),
        ("int4", True, ARM, "bf16"),
    ],
)
def test_auto_picks_what_is_quick_and_safe(format: str, calibrated: bool, processor: object, compute: str) -> None:
    choice = choose_on_cpu("auto", format, calibrated, processor)  # type: ignore[arg-type]
    assert choice.compute == compute
    assert choice.why


def test_what_is_asked_for_runs_or_says_why_not() -> None:
    assert choose_on_cpu("bf16", "int4", False, OLD).why == "bf16 was asked for"
    assert choose_on_cpu("int8", "int4", True, OLD).compute == "int8"
    with pytest.raises(PetaliteError, match="int8 on a CPU needs the ranges"):
        choose_on_cpu("int8", "int4", False, AMX)
    with pytest.raises(PetaliteError, match=r"does not multiply in 'in8'.*; it knows auto, fp32, bf16, int8"):
        choose_on_cpu("in8", "int4", True, AMX)
