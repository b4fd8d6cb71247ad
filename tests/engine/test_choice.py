"""Which precision is chosen for which checkpoint on which GPU, and what is refused in which words."""

from __future__ import annotations

import pytest
import torch

from petalite.device import COMPUTES, resolve_compute, unavailable_compute
from petalite.engine.choice import choose_compute, plain_dtype, stored_format
from petalite.errors import PetaliteError
from petalite.formats import FORMATS
from petalite.plan import MIXED, Plan

V100, T4, A100, A10, L4, H200, B200 = (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0)
QUANTIZED = [name for name, format in FORMATS.items() if not format.plain] + [MIXED]


@pytest.mark.parametrize("format", QUANTIZED)
@pytest.mark.parametrize(
    ("gpu", "compute"),
    [(V100, "fp16"), (T4, "fp16"), (A100, "int8"), (A10, "int8"), (L4, "fp8"), (H200, "fp8"), (B200, "fp8")],
)
def test_quantized_checkpoints_run_in_what_is_fastest(format: str, gpu: tuple[int, int], compute: str) -> None:
    choice = choose_compute("auto", format, gpu, "cuda")
    assert choice.compute == compute
    assert f"compute capability {gpu[0]}.{gpu[1]}" in choice.why and "quantized" in choice.why


@pytest.mark.parametrize("gpu", [T4, A100, H200])
@pytest.mark.parametrize("format", ["fp32", "fp16", "bf16"])
def test_a_plain_checkpoint_keeps_its_precision_where_the_gpu_has_it(format: str, gpu: tuple[int, int]) -> None:
    choice = choose_compute("auto", format, gpu, "cuda")
    if format == "bf16" and gpu == T4:
        assert choice.compute == "fp16" and "bf16, which a GPU of compute capability 7.5 does not" in choice.why
    else:
        assert choice.compute == format and "keeps its precision" in choice.why


@pytest.mark.parametrize(
    ("format", "compute"), [("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "bf16"), ("nf4", "bf16"), (MIXED, "bf16")]
)
def test_a_cpu_computes_as_plain_modules_do(format: str, compute: str) -> None:
    assert choose_compute("auto", format, None, "cpu").compute == compute
    assert resolve_compute("auto", format, torch.device("cpu")) == compute


@pytest.mark.parametrize("name", COMPUTES)
def test_what_is_asked_for_is_what_runs_or_an_error(name: str) -> None:
    assert choose_compute(name, "fp32", H200, "cuda").compute == name
    for gpu in (V100, T4, A100, H200):
        reason = unavailable_compute(name, gpu, "cuda")
        assert (reason is None) == (gpu >= {"fp32": (0, 0), "bf16": A100, "int8": T4, "fp8": L4}.get(name, V100))
        if reason is None:
            assert choose_compute(name, "nf4", gpu, "cuda").compute == name
        else:
            with pytest.raises(PetaliteError, match=f"{name} needs compute capability"):
                choose_compute(name, "nf4", gpu, "cuda")


@pytest.mark.parametrize(
    ("name", "gpu", "says"),
    [
        ("fp8", A100, r"fp8 needs compute capability 8\.9 or more, this GPU has 8\.0; use int8$"),
        ("bf16", T4, r"bf16 needs compute capability 8\.0 or more, this GPU has 7\.5; use fp16$"),
        ("int8", V100, r"int8 needs compute capability 7\.5 or more, this GPU has 7\.0; use fp16$"),
        ("fp16", (6, 1), r"fp16 needs compute capability 7\.0 or more, this GPU has 6\.1; use fp32$"),
        ("fp8", None, r"fp8 runs on NVIDIA GPUs of compute capability 8\.9 or more, not on a CPU; use bf16 or fp32$"),
        ("int8", None, r"plain modules do not multiply in int8; use the CPU engine, or bf16 or fp32$"),
        ("int4", H200, r"unknown compute 'int4' \(did you mean 'int8'\?\); known: auto, fp32, fp16, bf16, int8, fp8$"),
    ],
)
def test_refusals_are_one_line_with_a_way_out(name: str, gpu: tuple[int, int] | None, says: str) -> None:
    with pytest.raises(PetaliteError, match=says):
        choose_compute(name, "nf4", gpu, "cpu" if gpu is None else "cuda")


def test_plain_modules_refuse_eight_bits() -> None:
    for name, says in (("int8", "plain modules do not multiply in int8"), ("fp8", "fp8 runs on NVIDIA GPUs")):
        with pytest.raises(PetaliteError, match=says):
            resolve_compute(name, "fp32", torch.device("cpu"))
    with pytest.raises(PetaliteError, match="unknown compute 'fp9'"):
        resolve_compute("fp9", "fp32", torch.device("cpu"))


@pytest.mark.parametrize(
    ("formats", "stored"),
    [
        (["int4", "fp32", "fp32"], MIXED),
        (["bf16", "bf16", "fp32"], "bf16"),
        (["fp32", "bf16", "fp32"], "fp32"),
    ],
)
def test_of_a_mixed_plan_only_what_is_packed_counts_as_quantized(formats: list[str], stored: str) -> None:
    layers = {f"blocks.{index}.mlp.fc1": format for index, format in enumerate(formats)}
    assert stored_format(Plan(MIXED, {**layers, "head": "int8-channel"}, "bf16")) == stored
    assert stored_format(Plan("nf4", layers, "bf16")) == "nf4"


def test_between_the_products_stand_16_bits_that_the_device_has() -> None:
    expected = {"fp32": torch.float32, "fp16": torch.float16}
    for compute in COMPUTES:
        assert plain_dtype(compute, H200) == expected.get(compute, torch.bfloat16)
        assert plain_dtype(compute, None) == expected.get(compute, torch.bfloat16)
    assert plain_dtype("int8", T4) == torch.float16
