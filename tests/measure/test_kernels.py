"""Kernels and operators are sorted by the names that real profiles show, and the parts add up to the whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from petalite.measure import kernels
from petalite.measure.kernels import attention_ran, kind_of, profile, summarize

#: Names as profilers on NVIDIA GPUs (Ampere, Hopper, Blackwell) and on CPUs report them.
ATTENTION = {
    "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<64, 128, 128, 4, false>>": "fa2",
    "void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<64, 64, 256, 4>>": "fa2",
    "void flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 128, 4, false, false, cutlass::half_t>>": "fa2",
    "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, cutlass::bfloat16_t>>": "fa2",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "fa2",
    "aten::_flash_attention_forward": "fa2",
    "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::CollectiveMainloop>>>": "fa3",
    "fmha_cutlassF_f32_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<float>::Params)": "efficient",
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80": "efficient",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x": "cudnn",
    "cudnn_generated_fort_native_sdpa_sm100_flash_fprop": "cudnn",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
    "aten::_scaled_dot_product_attention_math": "math",
    "void (anonymous namespace)::softmax_warp_forward<float, float, float, 8, false, false>": "math",
    "void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, c10::Half, float, c10::Half>": "math",
    "aten::_softmax": "math",
    "aten::bmm": None,
    "_whole": "petalite",
    "_streamed": "petalite",
}
MATMUL = (
    "nvjet_hsh_256x128_64x4_2x1_v_bz_TNN",
    "nvjet_tst_128x24_64x11_2x1_v_bz_TNT",
    "nvjet_sm90_hss_320x128_64x3_1x2_h_bz_coopB_NNT",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x",
    "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize64x256x8_stage3_warpsize2x2x1_ffma_aligna4_alignc4",
    "sm90_xmma_gemm_i8i32_i8i32_i32_tn_n_tilesize128x128x128",
    "ampere_sgemm_128x64_tn",
    "_product",
    "ampere_bf16_s16816gemm_bf16_256x128_ldg8_f2f_stages_32x3_nn",
    "ampere_igemm_int8_128x128_ldg4_nt",
    "void cutlass::Kernel2<cutlass_80_tensorop_i16832gemm_s8_128x256_128x3_tn_align16>(cutlass_80_tensorop::Params)",
    "void gemmSN_TN_kernel<float, 128, 16, 2, 4, 4, 4, true, cublasGemvTensorStridedBatched<float const>>",
    "void cublasLt::splitKreduce_kernel<32, 16, int, __half, __half, float, false, __half>",
    "void gemv2T_kernel_val<int, int, float, float, float, float, 128, 16, 4, 4, false>",
    "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x16",
    "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_s1688fprop_optimized_tf32_64x64_16x10_nhwc_align4>",
    "void implicit_convolve_sgemm<float, float, 128, 5, 5, 3, 3, 3, 1, false, true, true>",
    "void kgemm_4bit_inference_naive<__half, 128, 16>(int, int, int, __half*, unsigned char*, float*)",
    "void gemm_4bit_sm80_m16n8k16<__half, 64, 64, 64>",
    "void gemm_4bit_simt<__nv_bfloat16, 1>",
    "bitsandbytes::gemv_4bit",
    "bitsandbytes::gemm_4bit",
    "bitsandbytes::int8_linear_matmul",
    *("aten::linear", "aten::addmm", "aten::mm", "aten::_int_mm", "aten::_scaled_mm", "aten::matmul"),
    *("aten::mkldnn_convolution", "aten::conv2d", "mkldnn::_linear_pointwise", "onednn::qlinear_pointwise"),
    "quantized::linear_dynamic",
    "triton_tem_fused_addmm_3",
)
DEQUANTIZE = (
    "void kDequantizeBlockwise<__half, 512, 64, 8, 2>(float*, unsigned char*, float*, __half*, int, int)",
    "void kDequantizeBlockwise<float, 512, 64, 8, 0>",
    "void kQuantizeBlockwise<__half, 64, 2, 0, 2>",
    "void kInt8VectorQuant<__half, 1024, 0>(__half*, signed char*, float*, float, int, int)",
    "void kdequant_mm_int32_fp16<4, 512>(int*, float*, float*, __half*, __half*, int, int, int)",
    *("bitsandbytes::dequantize_4bit", "bitsandbytes::dequantize_blockwise", "bitsandbytes::int8_vectorwise_quant"),
    *("bitsandbytes::int8_mm_dequant", "bitsandbytes::int8_mixed_scaled_mm", "bitsandbytes::int8_scaled_mm"),
    *("MatMul8bitLt", "MatMul8bitFp", "MatMul4Bit"),
)
UNTOLD = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>",
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::Half, float>",
    "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
    "void at::native::(anonymous namespace)::CatArrayBatchedCopy<at::native::(anonymous namespace)::OpaqueType<2u>>",
    "Memcpy DtoD (Device -> Device)",
    "triton_poi_fused_addmm_gelu_1",
    "triton_per_fused_native_layer_norm_0",
    *("aten::gelu", "aten::add", "aten::native_layer_norm", "aten::copy_", "aten::_to_copy", "aten::cat"),
    *("aten::_convert_indices_from_coo_to_csr", "aten::upsample_bilinear2d", "cudaLaunchKernel"),
)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_known_by_its_kernel(name: str) -> None:
    assert kind_of(name) == "attention"
    assert kernels.implementation_of(name) == ATTENTION[name]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "matmul") for name in MATMUL),
        *((name, "dequantize") for name in DEQUANTIZE),
        *((n, None) for n in UNTOLD),
    ],
)
def test_the_rest_is_sorted_by_name_and_proves_no_attention(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind
    assert kernels.implementation_of(name) is None


@pytest.mark.parametrize(
    ("names", "ran"),
    [
        ({"ampere_sgemm_128x64_tn", "softmax_warp_forward", "pytorch_flash::flash_fwd_kernel"}, "fa2"),
        ({"ampere_sgemm_128x64_tn", "softmax_warp_forward"}, "math"),
        ({"cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma", "cunn_SoftMaxForward"}, "cudnn"),
        ({"_whole", "_product", "pytorch_flash::flash_fwd_kernel"}, "petalite"),
        ({"_patches", "blocks_at_once", "gemv2T_kernel_val"}, "petalite"),
        ({"ampere_sgemm_128x64_tn"}, None),
        (set(), None),
    ],
)
def test_what_ran_is_what_the_names_prove(names: set[str], ran: str | None) -> None:
    assert attention_ran(names) == ran


# a profile as torch.profiler gives it, made by hand: operators in a tree, kernels beside it


def operator(name: str, self_us: float = 0.0, *children: Any, launches: tuple[tuple[str, float], ...] = ()) -> Any:
    event = SimpleNamespace(
        name=name,
        device_type=SimpleNamespace(name="CPU"),
        self_cpu_time_total=self_us,
        cpu_parent=None,
        cpu_children=list(children),
        kernels=[SimpleNamespace(name=kernel, device=0, duration=us) for kernel, us in launches],
    )
    for child in children:
        child.cpu_parent = event
    return event


def kernel(name: str, us: float, annotation: bool = False) -> Any:
    return SimpleNamespace(
        name=name,
        device_type=SimpleNamespace(name="CUDA"),
        time_range=SimpleNamespace(elapsed_us=lambda: us),
        is_user_annotation=annotation,
    )


def flat(root: Any) -> list[Any]:
    return [root, *(event for child in root.cpu_children for event in flat(child))]


def by_kind(totals: kernels.Totals) -> dict[str, float]:
    return {kind: sum(us for (_, its), (us, _) in totals.items() if its == kind) for kind in kernels.KINDS}


def test_operators_inherit_from_what_they_are_part_of() -> None:
    root = operator(
        "MatMul8bitFp", 1, operator("aten::mul_", 20), operator("aten::linear", 2, operator("aten::addmm", 300))
    )
    math = operator("aten::matmul", 5, operator("aten::expand", 6), operator("aten::bmm", 70))
    fused = operator("aten::scaled_dot_product_attention", 1, operator("aten::empty", 2), operator("aten::mm", 3))
    events = [*flat(root), *flat(math), *flat(fused), operator("aten::gelu", 1000)]
    totals, names = summarize(events, "cpu")
    assert by_kind(totals) == {"attention": 81 + 6, "matmul": 302, "dequantize": 21, "other": 1000}
    assert "aten::bmm" in names


def test_kernels_inherit_from_the_operator_that_launched_them_and_each_counts_once() -> None:
    copy, gemm = "void at::native::elementwise_kernel<128, 2>", "nvjet_hsh_128x128_64x4_1x2_h_bz_coopA_TNT"
    attention = operator("aten::_scaled_dot_product_attention_math", 9, launches=((copy, 5), (gemm, 40)))
    linear = operator("aten::linear", 9, operator("aten::addmm", 9, launches=((copy, 1), (gemm, 200))))
    other = operator("aten::add", 9, launches=((copy, 3),))
    device = [kernel(copy, 5), kernel(copy, 1), kernel(copy, 3), kernel(gemm, 40), kernel(gemm, 200)]
    graph = [kernel("void kDequantizeBlockwise<float>", 7), kernel(copy, 2), kernel("ProfilerStep#1", 9999, True)]
    totals, names = summarize([*flat(attention), *flat(linear), other, *device, *graph], "cuda")
    assert by_kind(totals) == {"attention": 45, "matmul": 201, "dequantize": 7, "other": 5}
    assert totals[copy, "other"] == (5, 2)
    assert "aten::addmm" not in names and "ProfilerStep#1" not in names


@pytest.fixture(scope="module")
def vit() -> Any:
    import timm

    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5
    ).eval()


def measured(model: Any, **settings: Any) -> dict[str, Any]:
    pixels = torch.randn(2, 3, 32, 32)

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return model(pixels)

    return profile(forward, lambda: None, torch.device("cpu"), **settings)


def test_a_real_profile_adds_up_and_names_the_flash_kernel(vit: Any) -> None:
    block = measured(vit, forwards=3)
    parts = [block[f"{kind}_ms"] for kind in ("attention", "matmul", "dequantize", "other")]
    assert block["total_ms"] == pytest.approx(sum(parts)) and min(parts[0], parts[1], parts[3]) > 0
    assert block["dequantize_ms"] == 0
    assert block["attention_ran"] == "fa2"
    assert block["attention_kernel"] == "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert block["device"] == "cpu" and block["forwards"] == 3
    calls = {top["name"]: top["calls"] for top in block["top"]}
    assert calls["aten::_scaled_dot_product_flash_attention_for_cpu"] == 2  # a pass: one a block, however many passes
    assert [top["ms"] for top in block["top"]] == sorted((top["ms"] for top in block["top"]), reverse=True)


def test_attention_written_out_is_math_with_its_products(vit: Any) -> None:
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return (query @ key.transpose(-2, -1)).softmax(dim=-1) @ value

    class Model(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            tokens = pixels.reshape(2, 2, 96, 16)
            return F.linear(attend(tokens, tokens, tokens), torch.ones(4, 16))

    block = measured(Model())
    assert block["attention_ran"] == "math" and block["attention_kernel"] == "aten::_softmax"
    kinds = {top["name"]: top["kind"] for top in block["top"]}
    assert kinds["aten::bmm"] == "attention"


def test_no_attention_is_reported_as_none() -> None:
    block = measured(torch.nn.Flatten())
    assert block["attention_ran"] is None and block["attention_kernel"] is None and block["attention_ms"] == 0
