"""Products and attention on a CUDA device: the same checks, the shapes of ViT-L, every way to cut them, CUDA graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from petalite.engine.kernels import tiled
from petalite.engine.kernels.attention import attention
from petalite.engine.kernels.attention import configs as attention_configs
from petalite.engine.kernels.product import product
from petalite.engine.kernels.tiles import Config, configs
from tests.engine.kernels import test_attention
from tests.engine.kernels.codes import FP8, INT8, assert_written
from tests.engine.kernels.test_attention import (  # noqa: F401
    test_a_key_counts_for_all_it_stands_for,
    test_codes_are_the_nearest,
    test_constant_values_pass_unchanged,
    test_every_number_of_tokens,
    test_every_size_of_heads,
    test_images_and_heads_do_not_mix,
    test_longer_sequences_are_streamed,
    test_no_images,
    test_scores_of_any_size,
)
from tests.engine.kernels.test_product import (  # noqa: F401
    close,
    ends,
    exact,
    factor,
    test_all_that_the_end_does,
    test_each_part_of_the_end_is_optional,
    test_int8_sums_are_exact,
    test_more_parts_than_depths,
    test_one_scale_for_all_rows,
    test_plain_results_are_rounded_once,
    test_split_sums_give_the_same_bits_each_time,
    test_zeros_and_large_values,
)

pytestmark = pytest.mark.gpu
BF16 = torch.bfloat16
#: ViT-L's products: outputs and inputs.
SHAPES = {"qkv": (3072, 1024), "proj": (1024, 1024), "fc1": (4096, 1024), "fc2": (1024, 4096)}
LAYERS = pytest.mark.parametrize("layer", SHAPES)
#: Relative error of sums in float8 with 14 bits, as Hopper keeps them, and of everything else.
FAST, SUMS = 3e-3, 1e-5


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 needs a GPU of compute capability 8.9")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def hopper_only() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")


def operands(M: int, N: int, K: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(M + N + K)
    a, w = (torch.randn(rows, K, generator=generator, device=device) for rows in (M, N))
    if dtype == INT8:
        return (40 * a).round().clamp(-127, 127).to(dtype), (40 * w).round().clamp(-127, 127).to(dtype)
    return a.to(dtype), w.to(dtype)


def check(M: int, N: int, K: int, dtype: torch.dtype, device: torch.device, config: Config, layer: str) -> None:
    """The product as `layer` has it in the engine: GELU's codes (fc1), with the residual (proj, fc2), or plain."""
    a, w = operands(M, N, K, dtype, device)
    rest: dict[str, Any] = {**ends(M, N, dtype, device), "activation": None}
    rest["residual"] = rest["residual"].to(BF16) if layer in ("proj", "fc2") else None
    if layer == "proj":
        rest["a_scale"] = rest["a_scale"][:1]
    error = FAST if dtype == FP8 else SUMS
    sums = {**rest, "residual": None}  # in 32 bits a tile and a residual of it may be more than shared memory holds
    y = product(a, w, **sums, dtype=torch.float32, config=config)
    assert close(y, exact(a, w, **sums), error)
    written = dtype if dtype != BF16 else BF16
    step = torch.tensor([0.05], device=device) if written != BF16 else None
    rest["activation"] = "gelu" if layer == "fc1" else None
    values = product(a, w, **rest, dtype=written, out_scale=step, config=config)
    wanted = exact(a, w, **rest)
    assert_written(values, step, wanted, 30 * error * float(wanted.abs().mean()))


@LAYERS
@pytest.mark.parametrize("dtype", [FP8, INT8, BF16], ids=["fp8", "int8", "bf16"])
@pytest.mark.parametrize("images", [1, 8, 32])
def test_every_way_to_cut_the_products_of_a_model(
    device: torch.device, images: int, dtype: torch.dtype, layer: str
) -> None:
    N, K = SHAPES[layer]
    for config in configs(images * 197, N, K, dtype, torch.cuda.get_device_capability()):
        check(images * 197, N, K, dtype, device, config, layer)


@pytest.mark.parametrize("dtype", [FP8, INT8, BF16], ids=["fp8", "int8", "bf16"])
def test_graphs_replay_products_with_split_sums(device: torch.device, dtype: torch.dtype) -> None:
    """Counters are back at zero after each replay, and each replay sees the inputs of its time."""
    M, (N, K) = 197, SHAPES["fc2"]
    cuts = [config for config in configs(M, N, K, dtype, torch.cuda.get_device_capability()) if config.split > 1]
    assert cuts
    a, w = operands(M, N, K, dtype, device)
    other = a.flip(0)
    given = a.clone()
    wanted = {config: [product(some, w, dtype=torch.float32, config=config) for some in (a, other)] for config in cuts}
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = {config: product(given, w, dtype=torch.float32, config=config) for config in cuts}
    for turn in range(20):
        given.copy_((a, other)[turn % 2])
        graph.replay()
        for config in cuts:
            assert torch.equal(found[config], wanted[config][turn % 2]), config
    assert not tiled.counters(device).counters.any()


def test_products_on_several_streams_do_not_share_counters(device: torch.device) -> None:
    M, (N, K) = 197, SHAPES["fc2"]
    config = Config(64, 64, stages=4, split=4)
    pairs = [operands(M + extra, N, K, FP8, device) for extra in range(4)]
    wanted = [product(a, w, dtype=torch.float32, config=config) for a, w in pairs]
    streams = [torch.cuda.Stream() for _ in pairs]
    torch.cuda.synchronize()
    for _ in range(20):
        found = []
        for (a, w), stream in zip(pairs, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(product(a, w, dtype=torch.float32, config=config))
        torch.cuda.synchronize()
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("config", [Config(64, 64), Config(64, 64, engine=False), Config(64, 64, split=4)], ids=str)
def test_dependent_products_wait_for_what_they_read(device: torch.device, config: Config) -> None:
    """A chain in which each reads what the one before has just written, eagerly and in a graph."""
    hopper_only()
    config = replace(config, dependent=True)
    a, w = operands(197, 1024, 1024, BF16, device)
    w *= 1024**-0.5

    def chain(config: Config) -> Tensor:
        y = a
        for _ in range(12):
            y = product(y, w, dtype=BF16, config=config)
        return y

    wanted = chain(replace(config, dependent=False))
    assert torch.equal(chain(config), wanted)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = chain(config)
    for _ in range(10):
        found.zero_()
        graph.replay()
        assert torch.equal(found, wanted)


def test_dependent_attention_waits_for_what_it_reads(device: torch.device) -> None:
    """Between two products, of which the first writes what it reads, and the second reads what it writes."""
    hopper_only()
    a, w = operands(197, 3072, 1024, BF16, device)
    back = operands(197, 1024, 1024, BF16, device)[1] * 1024**-0.5
    w *= 1024**-0.5
    cut = Config(64, 128, stages=5)

    def chain(dependent: bool) -> Tensor:
        y = a
        for _ in range(6):
            qkv = product(y, w, dtype=BF16, config=replace(cut, dependent=dependent))
            config = replace(attention_configs(1, 197, 16, 64)[0], dependent=dependent)
            y = attention(qkv.view(1, 197, -1), 16, dtype=BF16, config=config)
            y = product(y, back, dtype=BF16, config=replace(cut, dependent=dependent))
        return y

    wanted = chain(False)
    assert torch.equal(chain(True), wanted)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = chain(True)
    for _ in range(10):
        found.zero_()
        graph.replay()
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("given", [torch.float16, BF16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("shape", [(1, 197, 16, 64), (8, 197, 16, 64), (2, 197, 12, 64), (1, 257, 16, 80)], ids=str)
def test_every_way_to_cut_the_attention_of_a_model(
    device: torch.device, shape: tuple[int, int, int, int], given: torch.dtype
) -> None:
    B, N, H, D = shape
    qkv = torch.randn(B, N, 3 * H * D, generator=torch.Generator(device).manual_seed(0), device=device).to(given)
    sizes = test_attention.some_sizes(B, N, device)
    step = torch.tensor([0.004], device=device)
    bound = test_attention.HALF[given]
    for config in attention_configs(B, N, H, D):
        for some in (None, sizes):
            wanted = test_attention.exact(qkv, H, some)
            plain = attention(qkv, H, dtype=given, sizes=some, config=config)
            assert close(plain, wanted, bound), config
            for written in (FP8, INT8):
                codes = attention(qkv, H, dtype=written, scale=step, sizes=some, config=config)
                assert_written(codes, step, wanted, 20 * bound * float(wanted.abs().mean()))


@pytest.mark.parametrize("tokens", [181, 165, 149, 133, 117, 101, 65, 50])
def test_attention_while_tokens_are_merged(device: torch.device, tokens: int) -> None:
    qkv = torch.randn(4, tokens, 3 * 16 * 64, generator=torch.Generator(device).manual_seed(0), device=device).to(BF16)
    sizes = test_attention.some_sizes(4, tokens, device)
    found = attention(qkv, 16, dtype=BF16, sizes=sizes)
    assert close(found, test_attention.exact(qkv, 16, sizes), test_attention.HALF[BF16])


def test_float32_is_left_to_pytorch(device: torch.device) -> None:
    with pytest.raises(ValueError, match="left to PyTorch"):
        attention(torch.ones(1, 5, 48, device=device), 1, dtype=torch.float32)


def test_graphs_replay_attention(device: torch.device) -> None:
    qkv = torch.randn(2, 197, 3 * 1024, device=device, dtype=BF16)
    step = torch.tensor([0.01], device=device)
    wanted = attention(qkv, 16, dtype=FP8, scale=step)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attention(qkv, 16, dtype=FP8, scale=step)
    for _ in range(3):
        found.zero_()
        graph.replay()
        assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


def test_the_default_of_a_large_batch(device: torch.device) -> None:
    """256 images: places beyond 2**31 bytes are reached, and every row is written."""
    M, (N, K) = 256 * 197, SHAPES["fc1"]
    a, w = operands(M, N, K, FP8, device)
    y = product(a, w, dtype=torch.float32)
    rows = torch.arange(0, M, 997, device=device)
    assert close(y[rows], exact(a[rows], w), FAST) and close(y[-128:], exact(a[-128:], w), FAST)
