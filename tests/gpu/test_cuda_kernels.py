"""The kernels between the products on a CUDA device: the same checks, the shapes of real models, CUDA graphs, order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from petalite.engine.kernels.gelu import gelu
from petalite.engine.kernels.norm import norm
from petalite.engine.kernels.patches import patches
from petalite.engine.kernels.quantize import quantize
from tests.engine.kernels import test_gelu, test_norm
from tests.engine.kernels.codes import FP8, INT8, assert_own_scales, assert_written
from tests.engine.kernels.test_gelu import (  # noqa: F401
    test_at_the_ends_of_the_line,
    test_every_bfloat16_number,
    test_it_is_written_as_asked,
    test_rows_that_give_next_to_nothing,
    test_the_error_is_below_its_bound,
)
from tests.engine.kernels.test_merging import (  # noqa: F401
    test_an_image_that_is_no_number_spoils_no_other_and_stays_in_its_place,
    test_means_are_weighted_and_rounded_once,
    test_of_equals_the_earlier_counts,
    test_the_same_pairs_in_the_same_order,
)
from tests.engine.kernels.test_norm import (  # noqa: F401
    test_a_bias_of_zero_and_a_constant_row_are_all_zeros,
    test_a_large_mean_does_not_swallow_the_variance,
    test_add_norm_and_write,
    test_constant_rows_give_the_bias,
    test_eps_counts,
    test_how_rows_are_cut_changes_rounding_at_most,
    test_outliers_and_small_rows,
    test_the_stream_may_be_wider_than_what_is_added,
)
from tests.engine.kernels.test_patches import (  # noqa: F401
    test_a_product_with_them_is_the_embedding,
    test_rows_are_patches,
)
from tests.engine.kernels.test_quantize import (  # noqa: F401
    test_a_plain_type_is_a_cast,
    test_each_row_fills_the_codes,
    test_every_float8_value_is_its_own_code,
    test_float8_rounds_ties_to_even,
    test_how_a_line_is_cut_changes_nothing,
    test_how_rows_are_cut_changes_nothing,
    test_int8_rounds_ties_to_even,
    test_no_rows,
    test_one_scale_for_all,
    test_rows_of_extremes,
    test_what_does_not_fit_saturates,
)

pytestmark = pytest.mark.gpu
CODES = pytest.mark.parametrize("dtype", [FP8, INT8], ids=["fp8", "int8"])
#: Tokens of 32 images of 224 pixels in patches of 16, and widths of ViT-Ti, S, B, L and H; L's hidden layer.
ROWS, WIDTHS, HIDDEN = 32 * 197, (192, 384, 768, 1024, 1280), 4096


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 needs a GPU of compute capability 8.9")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def stream_of(rows: int, columns: int, seed: int = 0) -> Tensor:
    """bfloat16 rows as a residual stream has them: normal, with a few columns of large values."""
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, device="cuda")
    x[:, :: columns // 3] *= 30
    return x.to(torch.bfloat16)


@CODES
@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("rows", [197, ROWS])
def test_norm_of_real_shapes(device: torch.device, rows: int, columns: int, dtype: torch.dtype) -> None:
    x, add = stream_of(rows, columns), stream_of(rows, columns, 1)
    weight, bias = test_norm.affine(columns, device)
    total = (x.float() + add.float()).to(x.dtype)
    codes, scale = norm(x, weight, bias, 1e-6, add=add, dtype=dtype)
    wanted = test_norm.exact(total, weight, bias)
    assert torch.equal(x, total)
    assert_own_scales(scale, wanted, dtype, 2e-4)
    assert_written(codes, scale, wanted, 2e-4)


@CODES
@pytest.mark.parametrize("form", ["none", "tanh"])
@pytest.mark.parametrize("rows", [197, ROWS])
def test_gelu_of_real_shapes(rows: int, form: str, dtype: torch.dtype) -> None:
    x = stream_of(rows, HIDDEN) / 4
    wanted = test_gelu.exact(x, form)
    for given in (None, torch.tensor([0.02], device="cuda")):
        codes, scale = gelu(x, dtype=dtype, scale=given, approximate=form)
        assert_written(codes, scale, wanted, 1e-6)


@CODES
@pytest.mark.parametrize("columns", [*WIDTHS, HIDDEN])
def test_quantize_of_real_shapes(columns: int, dtype: torch.dtype) -> None:
    x = stream_of(ROWS, columns)
    codes, scale = quantize(x, dtype)
    assert_own_scales(scale, x.double(), dtype)
    assert_written(codes, scale, x.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_patches_of_a_batch(device: torch.device, patch: int, dtype: torch.dtype) -> None:
    test_rows_are_patches(device, (32, 3, 224, 224), (patch, patch), dtype)


def steps(x: Tensor, pixels: Tensor) -> list[Callable[[], object]]:
    """A chain of kernels of which each reads what the one before has just written."""
    rows, columns = x.shape
    weight, bias = test_norm.affine(columns, x.device)
    tile = torch.empty_like(x)

    def copied(values: Tensor) -> None:
        tile.copy_(values[:rows, :columns])

    chain: list[Callable[[], object]] = [lambda: copied(patches(pixels, (16, 16), torch.bfloat16))]
    for _ in range(10):
        chain += [
            lambda: tile.copy_(norm(x, weight, bias, 1e-6, add=tile, dtype=torch.bfloat16)[0]),
            lambda: tile.copy_(
                gelu(norm(x, weight, bias, 1e-6, add=tile, dtype=torch.bfloat16)[0], dtype=tile.dtype)[0]
            ),
            lambda: tile.copy_(quantize(gelu(x, dtype=torch.bfloat16)[0], FP8)[0]),
            lambda: tile.copy_(quantize(norm(x, weight, bias, 1e-6, add=tile, dtype=torch.float32)[0], INT8)[0]),
        ]
    return chain


@pytest.mark.parametrize("rows", [65, 2_000])
def test_a_graph_of_many_kernels_keeps_their_order(rows: int) -> None:
    pixels = torch.randint(0, 256, (64, 3, 224, 224), device="cuda", dtype=torch.uint8)
    start = stream_of(rows, 768)
    x = start.clone()
    for step in steps(x, pixels):
        step()
        torch.cuda.synchronize()
    expected = x.clone()
    chain = steps(x, pixels)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for step in chain:
            step()
    for _ in range(20):
        x.copy_(start)
        graph.replay()
        assert torch.equal(x, expected)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device() -> None:
    x, step = stream_of(300, 768), torch.tensor([0.05], device="cuda")
    weight, bias = test_norm.affine(768, x.device)
    pixels = torch.zeros(2, 3, 224, 224, device="cuda", dtype=torch.uint8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        norm(x, weight, bias, 1e-6, add=x.clone(), dtype=FP8, scale=step)
        gelu(x, dtype=FP8)
        quantize(x, INT8, step)
        patches(pixels, (16, 16), torch.float16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_matrices_of_more_than_two_billion_values() -> None:
    rows, columns = 2**18 + 3, 8192
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    x = torch.zeros(rows, columns, device="cuda", dtype=torch.bfloat16)
    x[-2:] = stream_of(2, columns)
    for scale in (None, torch.tensor([0.1], device="cuda")):
        codes, found = quantize(x, INT8, scale)
        last = found if scale is not None or found is None else found[-2:]
        assert (codes[0] == 0).all()
        assert_written(codes[-2:], last, x[-2:].double())
    weight, bias = test_norm.affine(columns, x.device)
    codes, found = norm(x, weight, bias, 1e-6, add=x.clone(), dtype=INT8)
    assert found is not None
    assert_written(codes[-2:], found[-2:], test_norm.exact(x[-2:], weight, bias), 1e-3)
