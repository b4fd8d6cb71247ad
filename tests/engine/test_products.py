"""Products in every precision against float64, on a GPU with every kernel that takes part in a trial."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from petalite.device import COMPUTES, capability_of, unavailable_compute
from petalite.engine import products
from petalite.engine.choice import plain_dtype
from petalite.engine.expanded import CODES, encode, step_of
from petalite.engine.kernels import Quantized
from petalite.engine.kernels.quantize import quantize
from petalite.engine.products import Products, shape_class
from petalite.engine.trial import Choices, Trials, time_on_cpu
from petalite.engine.weights import Linear
from tests.engine.kernels.conftest import _rounding_of_a_gpu, device

__all__ = ["_rounding_of_a_gpu", "device"]
#: Half a unit in the last place of what stands between the products.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 1e-6}
SHAPES = [(1, 64, 96), (16, 192, 64), (33, 64, 192), (197, 192, 576)]


def engine(compute: str, device: torch.device) -> Products:
    if (reason := unavailable_compute(compute, capability_of(device), device.type)) and device.type != "cpu":
        pytest.skip(reason)
    return Products(compute, plain_dtype(compute, capability_of(device)), Choices(Trials(None, time_on_cpu), device))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(outputs: int, inputs: int, *, bias: bool = True, span: tuple[float, float] | None = None) -> Linear:
    weight = numbers(outputs, inputs, seed=1) * inputs**-0.5
    weight[0], weight[1] = 0, 100 * weight[1]
    return Linear("layer", weight, 0.3 * numbers(outputs, seed=2) if bias else None, span)


def taken(x: Tensor, ran: Products, step: Tensor | None = None) -> Quantized:
    return (x.to(ran.plain), None) if ran.codes is None else quantize(x, ran.codes, step)


def plain(a: Quantized) -> Tensor:
    values, scale = a
    return values.double() if scale is None else values.double() * scale.double().view(-1, 1)


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_its_codes(
    compute: str, shape: tuple[int, int, int], bias: bool, device: torch.device
) -> None:
    ran = engine(compute, device)
    rows, inputs, outputs = shape
    layer = ran.expand(linear(outputs, inputs, bias=bias))
    a = taken(numbers(rows, inputs).to(device), ran)
    weight = layer.weight.double() if layer.scale is None else layer.weight.double() * layer.scale.double()[:, None]
    exact = plain(a) @ weight.mT + (0 if layer.bias is None else layer.bias.double())
    ways = ran._ways(a, layer) if device.type == "cuda" else {}
    for name, y in {"chosen": ran.multiply(a, layer), **{name: way() for name, way in ways.items()}}.items():
        assert y.shape == (rows, outputs) and y.dtype == ran.plain
        error = (y.double() - exact).abs()
        # besides the rounding of the result, float8 sums on tensor cores keep about 13 bits
        sums = plain(a).abs() @ weight.abs().mT
        allowed = 2 * ROUNDING[ran.plain] * exact.abs() + (2.0**-11 if compute == "fp8" else 2.0**-18) * sums + 1e-6
        assert (error <= allowed).all(), name


@pytest.mark.parametrize(
    ("compute", "bound"), [("fp32", 1e-6), ("fp16", 2e-3), ("bf16", 1e-2), ("int8", 0.02), ("fp8", 0.06)]
)
def test_a_product_is_nearly_that_of_the_layer(compute: str, bound: float, device: torch.device) -> None:
    ran = engine(compute, device)
    source = linear(192, 256)
    x = numbers(50, 256)
    assert source.bias is not None
    exact = x.double() @ source.weight.double().mT + source.bias.double()
    y = ran.multiply(taken(x.to(device), ran), ran.expand(source)).double().cpu()
    assert (y - exact).norm() / exact.norm() < bound
    assert torch.equal(y[:, 0], source.bias[0].to(ran.plain).double().expand(50))  # a row of zeros


@pytest.mark.parametrize("compute", ["int8", "fp8"])
def test_one_scale_for_all_is_folded_into_those_of_the_columns(compute: str, device: torch.device) -> None:
    ran = engine(compute, device)
    source = linear(96, 64, span=(-1.0, 4.0))
    layer = ran.expand(source, ran.step(source.span, None))
    x = numbers(40, 64).clamp(-1, 4).to(device)
    a = taken(x, ran, layer.step)
    assert a[1] is layer.step and layer.folded is not None and layer.scale is not None
    torch.testing.assert_close(layer.folded, layer.scale * layer.step)
    assert layer.bias is not None
    # a row is a hundred times the others, so that each has a scale of its own
    weight = layer.weight.double() * layer.scale.double()[:, None]
    exact = plain(a) @ weight.mT + layer.bias.double()
    assert (ran.multiply(a, layer).double() - exact).norm() / exact.norm() < 5e-3


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("gelu", ["none", "tanh"])
@pytest.mark.parametrize("static", [True, False])
def test_gelu_is_written_as_the_next_product_takes_it(
    compute: str, gelu: str, static: bool, device: torch.device
) -> None:
    ran = engine(compute, device)
    after = ran.expand(linear(32, 96), ran.step((-0.17, 8.0), None) if static else None)
    layer = ran.expand(linear(96, 64))
    a = taken(numbers(70, 64).to(device), ran)
    exact = F.gelu(ran._exact(a, layer).double(), approximate=gelu)
    written = ran.multiply_gelu(a, layer, after.step, gelu)
    assert written[0].dtype == (ran.codes or ran.plain)
    assert (after.step is None) == (not static or ran.codes is None)
    assert ran.codes is None or (written[1] is after.step) == static
    # row 1 of the weight is a hundred times the others, and beyond the range that was calibrated
    error = (
        plain(written) - exact.clamp(max=8.0 * 8 if compute == "fp8" else 8.0)
        if static and ran.codes
        else plain(written) - exact
    )
    assert error.norm() / exact.norm() < {"fp32": 1e-6, "fp16": 1e-3, "bf16": 4e-3, "int8": 0.02, "fp8": 0.04}[compute]


@pytest.mark.parametrize("compute", list(CODES))
def test_a_product_is_written_as_codes(compute: str, device: torch.device) -> None:
    ran = engine(compute, device)
    step = torch.tensor([0.5 if compute == "fp8" else 3.0], device=device)
    layer = ran.expand(linear(96, 64), ran.step((-3.0, 3.0), None))
    a = taken(numbers(70, 64).to(device), ran, layer.step)
    codes, worth = ran.multiply_codes(a, layer, step)
    assert codes.dtype == ran.codes and worth is step
    exact = ran._exact(a, layer).double()
    inside = exact.abs() <= 127 * 0.5  # the large row of integers may lie beyond their largest code
    error = (plain((codes, worth)) - exact)[inside]
    assert error.abs().max() <= (0.5 * 3.0 + 0.3 if compute == "int8" else 2.1 + 0.3)
    assert error.norm() / exact[inside].norm() < (0.04 if compute == "fp8" else 0.4)


def test_only_a_gpu_adds_a_product_in_place() -> None:
    ran = engine("fp8", torch.device("cpu"))
    layer = ran.expand(linear(96, 64), ran.step((-3.0, 3.0), None))
    assert not ran.adds(taken(numbers(70, 64), ran, layer.step), layer)


@pytest.mark.parametrize("codes", CODES.values(), ids=str)
@pytest.mark.parametrize("factor", [1.0, 0.0, 1e-30, 1e30, 1e-38])
def test_a_row_s_largest_value_is_the_largest_code(codes: torch.dtype, factor: float) -> None:
    weight = numbers(7, 33) * factor
    weight[3] = 0
    encoded, scale = encode(weight, codes)
    largest = products.LARGEST[codes]
    assert encoded.dtype == codes and torch.isfinite(scale).all() and (scale > 0).all()
    assert encoded.double().abs().max() <= largest and scale[3] == 1
    if factor in (1.0, 1e-30, 1e30):
        assert torch.equal(encoded.double().abs().amax(1)[:3], torch.full((3,), largest).double())
        half = 0.5 if codes == torch.int8 else 2.0**-4 * encoded.double().abs().clamp(min=2.0**-5)
        assert ((encoded.double() - weight.double() / scale.double()[:, None]).abs() <= half * (1 + 1e-5)).all()


def test_alike_rows_of_floats_share_one_scale_and_integers_never_do() -> None:
    device = torch.device("cpu")
    source = Linear("alike", numbers(64, 48), numbers(64))
    x = numbers(40, 48).clamp(-5, 5)
    for compute, shared in (("fp8", True), ("int8", False)):
        ran = engine(compute, device)
        layer = ran.expand(source, ran.step((-5.0, 5.0), None))
        assert layer.scale is not None and (layer.scale.numel() == 1) == shared
        assert source.bias is not None
        exact = x.double() @ source.weight.double().mT + source.bias.double()
        y = ran.multiply(taken(x, ran, layer.step), layer).double()
        assert (y - exact).norm() / exact.norm() < {"fp8": 0.05, "int8": 0.03}[compute]


def test_a_bound_is_the_largest_code_of_floats_and_nothing_to_integers() -> None:
    fp8, int8 = engine("fp8", torch.device("cpu")), engine("int8", torch.device("cpu"))
    assert float(fp8.step(None, 896.0)) == pytest.approx(2.0)  # type: ignore[arg-type]
    assert float(fp8.step((0.0, 5.6), 896.0)) == pytest.approx(0.1)  # type: ignore[arg-type]
    assert float(fp8.step((0.0, 5600.0), 896.0)) == pytest.approx(2.0)  # type: ignore[arg-type]
    assert float(fp8.step(None, 0.0)) > 0  # type: ignore[arg-type]
    assert int8.step(None, 896.0) is None and fp8.step(None, None) is None
    assert engine("bf16", torch.device("cpu")).step((0.0, 1.0), 1.0) is None


def test_a_calibrated_range_fills_the_codes_of_integers_and_leaves_floats_room() -> None:
    assert step_of((-0.17, 12.7), torch.int8) == pytest.approx(0.1)
    assert step_of((-12.7, 3.0), torch.int8) == pytest.approx(0.1)
    assert step_of((0.0, 56.0), torch.float8_e4m3fn) == pytest.approx(1.0)
    assert step_of((0.0, 0.0), torch.int8) == 1.0


def test_shapes_that_are_alike_share_a_trial() -> None:
    sizes = [*range(1, 3000), 50_000, 197 * 256]
    classes = [shape_class(rows) for rows in sizes]
    assert all(rows <= kind < max(2 * rows, 17) for rows, kind in zip(sizes, classes, strict=True))
    assert all(shape_class(kind) == kind for kind in classes)
    assert classes == sorted(classes) and len(set(classes[:2999])) < 25


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Products as on a GPU that is not there: what would take part in a trial."""

    def make(compute: str, capability: tuple[int, int] = (9, 0)) -> Products:
        monkeypatch.setattr(products, "capability_of", lambda device: capability)
        plain = torch.bfloat16 if capability >= (8, 0) else torch.float16
        return Products(compute, plain, Choices(Trials(None, time_on_cpu), torch.device("cpu")))

    return make


@pytest.mark.parametrize(
    ("capability", "compute", "rows", "outputs", "cublas", "own"),
    [
        ((9, 0), "fp8", 197, 1024, True, True), ((9, 0), "fp8", 197, 1000, False, True),
        ((9, 0), "int8", 17, 1024, True, True), ((9, 0), "int8", 1, 1024, True, True),
        ((9, 0), "bf16", 197, 1001, True, True), ((9, 0), "fp32", 197, 1024, True, False),
        ((8, 0), "int8", 197, 1024, True, True), ((7, 5), "fp16", 197, 1024, True, True),
        ((7, 5), "int8", 197, 1024, True, False), ((7, 5), "int8", 1, 1024, True, False),
    ],
)  # fmt: skip
def test_who_takes_part_in_a_trial(
    on: Any, capability: tuple[int, int], compute: str, rows: int, outputs: int, cublas: bool, own: bool
) -> None:
    ran: Products = on(compute, capability)
    layer = ran.expand(linear(outputs, 64))
    a = (torch.zeros(rows, 64, dtype=ran.codes or ran.plain), None if ran.codes is None else torch.ones(rows))
    names = list(ran._ways(a, layer))
    assert ("cublas" in names) == cublas and any(name.startswith("petalite ") for name in names) == own
    assert not cublas or names[0] == "cublas"  # what others have to agree with


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 40])
def test_integers_of_any_number_of_rows(on: Any, rows: int) -> None:
    """PyTorch multiplies from 17 rows on; fewer are filled up."""
    ran: Products = on("int8")
    layer = ran.expand(linear(48, 64))
    generator = torch.Generator().manual_seed(rows)
    a = (torch.randint(-127, 128, (rows, 64), generator=generator, dtype=torch.int8), torch.rand(rows) + 0.5)
    found, expected = ran._cublas(a, layer), ran._exact(a, layer)
    assert found.shape == (rows, 48) and found.is_contiguous()
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.01, atol=1e-3)
