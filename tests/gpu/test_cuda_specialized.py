"""The product with specialized warps on a Hopper GPU: it has no interpreter, so it is checked here alone."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from petalite.engine.kernels.tiles import Config
from tests.engine.kernels.codes import FP8, INT8
from tests.gpu.test_cuda_products import BF16, SHAPES, check, hopper_only, operands

pytestmark = pytest.mark.gpu
WAYS = (
    Config(128, 256, specialized=True),
    Config(128, 256, specialized=True, lead=2),
    Config(128, 128, specialized=True, stages=6, lead=3),
)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.parametrize("config", WAYS, ids=str)
@pytest.mark.parametrize("rows", [5_000, 197, 1], ids=lambda rows: f"{rows} rows")
def test_one_tile_after_the_other(device: torch.device, rows: int, config: Config) -> None:
    hopper_only()
    check(rows, 3072, 1024, FP8, device, config, "qkv")


@pytest.mark.parametrize("layer", SHAPES)
@pytest.mark.parametrize("dtype", [FP8, INT8, BF16], ids=["fp8", "int8", "bf16"])
def test_each_product_of_a_model(device: torch.device, dtype: torch.dtype, layer: str) -> None:
    hopper_only()
    config = Config(128, 128 if dtype == INT8 else 256, specialized=True, lead=2)
    check(32 * 197, *SHAPES[layer], dtype, device, config, layer)


def test_short_sums_and_odd_sizes(device: torch.device) -> None:
    hopper_only()
    for depth in (16, 128, 208, 400):
        for columns in (16, 144, 272):
            check(300, columns, depth, FP8, device, Config(128, 256, specialized=True, lead=3), "qkv")


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    hopper_only()
    from petalite.engine.kernels.product import product

    a, w = operands(64, 128, 128, FP8, device)
    with pytest.raises(ValueError, match="tiles of 128"):
        product(a, w, dtype=BF16, config=Config(64, 128, specialized=True))
