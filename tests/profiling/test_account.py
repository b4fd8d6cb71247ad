"""Parts, gaps and their sum: the account of made-up passes, and a check that can fail."""

from __future__ import annotations

import pytest

from petalite.profiling.account import account, middle_mean
from petalite.profiling.steps import Pass, Recorded, Step, finer_kind


def recorded(undisturbed_us: list[float], untold: str | None = None, slow: float = 1.0) -> Recorded:
    def one(factor: float) -> Pass:
        steps = [
            Step("gemm", "products", "blocks.0.attn.qkv", 0, 600 * factor),
            Step("gemm", "products", "blocks.0.attn.proj", 600, 200 * factor),
            Step("_norm", "normalization", "blocks.0.norm2", 800, 100 * factor),
            Step("copy", "copies", None, 900, 50 * factor),
        ]
        return Pass(steps, 1000 * factor, 50 * factor)

    # a pass in four is out of the ordinary, to either side
    return Recorded([one(slow), one(slow), one(9.0), one(0.1)], undisturbed_us, untold, clock="by hand")


def test_kinds_layers_and_kernels_are_a_pass_in_the_middle_half() -> None:
    found = account(recorded([1000.0] * 4))
    assert {entry["kind"]: entry["ms"] for entry in found["kinds"]} == pytest.approx(
        {"products": 0.8, "normalization": 0.1, "copies": 0.05, "gaps": 0.05}
    )
    assert sum(entry["share"] for entry in found["kinds"]) == pytest.approx(1)
    assert [(entry["layer"], entry["ms"]) for entry in found["layers"]] == [
        ("blocks.0.attn.qkv", pytest.approx(0.6)),
        ("blocks.0.attn.proj", pytest.approx(0.2)),
        ("blocks.0.norm2", pytest.approx(0.1)),
        (None, pytest.approx(0.05)),
    ]
    assert (found["top"][0]["name"], found["top"][0]["calls"]) == ("gemm", 2)
    assert sum(entry["ms"] for entry in found["layers"]) + 0.05 == pytest.approx(found["check"]["accounted_ms"])


@pytest.mark.parametrize(("total", "holds"), [(1000, True), (1029, True), (972, True), (1040, False), (960, False)])
def test_the_check_holds_within_three_percent(total: float, holds: bool) -> None:
    check = account(recorded([total, total, 5 * total, 0.1 * total]))["check"]
    assert check["total_ms"] == pytest.approx(total / 1e3)
    assert check["accounted_ms"] == pytest.approx(1.0)
    assert check["difference"] == pytest.approx(1000 / total - 1)
    assert check["adds_up"] is holds


def test_layers_that_are_not_told_have_a_reason() -> None:
    found = account(recorded([1000.0], untold="the order differed"))
    assert (found["layers"], found["layers_untold"]) == (None, "the order differed")


def test_the_middle_mean_leaves_out_a_quarter_at_either_end() -> None:
    assert middle_mean([100.0, 1.0, 2.0, 3.0]) == 2.5
    assert middle_mean([4.0]) == 4.0


@pytest.mark.parametrize(
    ("name", "scope", "kind"),
    [
        ("nvjet_hsh_256x128_64x4_2x1_v_bz_TNN", None, "products"),
        ("_whole", None, "attention"),
        ("_norm", None, "normalization"),
        ("_rows", None, "quantize"),
        ("blocks_at_once", None, "blocks"),
        ("_flat", None, "quantize"),
        ("_patches", None, "copies"),
        ("_merge", None, "merging"),
        ("void cublasLt::epilogue::impl::globalKernel<8, 32, float>", None, "products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", None, "products"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>>", None, "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", None, "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", None, "attention"),
        ("bitsandbytes::dequantize_4bit", None, "quantize"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float>", None, "normalization"),
        ("Memcpy DtoD (Device -> Device)", None, "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>", None, "elementwise"),
        *(("aten::native_layer_norm", None, "normalization"), ("aten::copy_", None, "copies")),
        *(("aten::copy_", "products", "products"), ("aten::add", "attention", "attention")),
        *(("aten::gelu", "other", "elementwise"), ("unheard_of", "normalization", "normalization")),
        ("unheard_of", None, "other"),
    ],
)
def test_kinds_are_told_by_name_and_by_what_they_are_in(name: str, scope: str | None, kind: str) -> None:
    assert finer_kind(name, scope) == kind
