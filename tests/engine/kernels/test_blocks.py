"""All blocks in one kernel against the same arithmetic in float64, rounded where the kernel rounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from petalite.engine.kernels.blocks import Cut, Layer, Product, Table, blocks, cuts, refused, takes
from tests.engine.kernels.codes import FP8

EPS = 1e-6
HEADS = 2
#: What a step of the codes is worth; the largest code is 448 of them.
STEPS = (0.03, 0.05, 0.05, 0.03, 0.02)
#: Images, tokens, channels, hidden. Tiles of 64 rows do not divide the tokens; some stages need few of the programs.
SHAPES = [(1, 17, 128, 512), (2, 70, 128, 1024), (1, 130, 256, 512)]
#: Another way than the usual one.
OTHER = Cut(64, 64, 32, 128, parts=4, loads=3)


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers_of(C: int, hidden: int, count: int, device: torch.device, *, biases: bool = True) -> list[Layer]:
    """Layers with random weights; of every second one each row of a weight has a scale of its own."""

    def product(outputs: int, inputs: int, step: float, seed: int) -> Product:
        weight = numbers(outputs, inputs, seed=seed) / inputs**0.5
        largest = weight.abs().amax(1) if seed // 10 % 2 else weight.abs().amax()[None]
        codes = (weight / (largest / 448).view(-1, 1)).to(FP8)
        bias = 0.1 * numbers(outputs, seed=seed + 1)
        return Product(codes.to(device), (largest / 448 * step).to(device), bias.to(device) if biases else None)

    def norm(seed: int) -> tuple[Tensor, Tensor]:
        return (1 + 0.1 * numbers(C, seed=seed)).to(device), (0.1 * numbers(C, seed=seed + 1)).to(device)

    shapes = ((3 * C, C, STEPS[0]), (C, C, STEPS[2]), (hidden, C, STEPS[3]), (C, hidden, STEPS[4]))
    found = []
    for start in range(10, 10 * count + 10, 10):
        products = (product(*shape, seed=start + 2 * place) for place, shape in enumerate(shapes))
        steps = tuple(torch.tensor([step], device=device) for step in STEPS)
        found.append(Layer(norm(start + 8), norm(start + 108), *products, steps))
    return found


def stream(B: int, N: int, C: int, device: torch.device) -> Tensor:
    return numbers(B, N, C, seed=1).to(device, torch.bfloat16)


def exact(x: Tensor, layers: list[Layer]) -> Tensor:
    """float64, rounded to codes and to the stream's type where the kernel does so."""
    B, N, C = x.shape
    kept = x.dtype

    def codes(values: Tensor, step: Tensor) -> Tensor:
        return (values / step.double()).float().clamp(-448, 448).to(FP8).double()

    def multiplied(a: Tensor, product: Product) -> Tensor:
        y = a @ product.weight.double().mT * product.scale.double()
        return y if product.bias is None else y + product.bias.double()

    def normed(values: Tensor, norm: tuple[Tensor, Tensor], step: Tensor) -> Tensor:
        return codes(F.layer_norm(values, (C,), norm[0].double(), norm[1].double(), EPS), step)

    values = x.double()
    for layer in layers:
        one, heads, proj, fc1, fc2 = layer.steps
        qkv = codes(multiplied(normed(values, layer.norm1, one), layer.qkv), heads) * heads.double()
        query, key, value = qkv.view(B, N, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        shares = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1)
        attended = codes((shares @ value).transpose(1, 2).reshape(B, N, C), proj)
        values = (values + multiplied(attended, layer.proj)).to(kept).double()
        hidden = F.gelu(multiplied(normed(values, layer.norm2, fc1), layer.fc1))
        values = (values + multiplied(codes(hidden, fc2), layer.fc2)).to(kept).double()
    return values


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def near(device: torch.device) -> float:
    """How far off a layer may be: a code may be the neighbour of the one that float64 gives, and is so more often where
    tensor cores add up products of 8-bit floats with fewer bits than float32 has."""
    return 0.01 if device.type == "cpu" else 0.02


@pytest.mark.parametrize(
    ("shape", "cut"), [(SHAPES[0], Cut()), (SHAPES[0], OTHER), (SHAPES[1], Cut()), (SHAPES[2], OTHER)], ids=str
)
def test_one_layer_is_what_its_parts_are(shape: tuple[int, int, int, int], cut: Cut, device: torch.device) -> None:
    B, N, C, hidden = shape
    layers = layers_of(C, hidden, 1, device)
    x = stream(B, N, C, device)
    found = blocks(x.clone(), Table(layers, HEADS, EPS), cut)
    assert error(found, exact(x, layers)) < near(device)
    assert error(x, exact(x, layers)) > 0.3


def test_layers_follow_each_other(device: torch.device) -> None:
    layers = layers_of(128, 512, 3, device)
    x = stream(1, 20, 128, device)
    found = blocks(x.clone(), Table(layers, HEADS, EPS))
    assert error(found, exact(x, layers)) < 4 * near(device)
    assert error(found, exact(x, layers[:2])) > 0.1 < error(found, exact(x, [*layers[1:], layers[0]]))


def test_it_changes_the_stream_in_place_to_the_same_bits_each_time(device: torch.device) -> None:
    table = Table(layers_of(128, 512, 1, device), HEADS, EPS)
    x = stream(2, 20, 128, device)
    one, other = x.clone(), x.clone()
    assert blocks(one, table).data_ptr() == one.data_ptr()
    assert torch.equal(one, blocks(other, table)) and not torch.equal(one, x)


def test_images_do_not_see_each_other(device: torch.device) -> None:
    table = Table(layers_of(128, 512, 1, device), HEADS, EPS)
    x = stream(2, 17, 128, device)
    alone = torch.cat([blocks(image.clone()[None], table) for image in x])
    assert torch.equal(blocks(x.clone(), table), alone)


def test_without_biases(device: torch.device) -> None:
    layers = layers_of(128, 512, 1, device, biases=False)
    x = stream(1, 20, 128, device)
    assert error(blocks(x.clone(), Table(layers, HEADS, EPS)), exact(x, layers)) < near(device)


@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e4, 1e15])
def test_extreme_streams_stay_numbers(factor: float, device: torch.device) -> None:
    layers = layers_of(128, 512, 1, device)
    x = (stream(1, 20, 128, device).float() * factor).to(torch.bfloat16)
    found = blocks(x.clone(), Table(layers, HEADS, EPS))
    assert found.isfinite().all()
    if factor < 1:
        assert error(found, exact(x, layers)) < 4 * near(device)


def test_an_image_that_is_no_number_spoils_no_other(device: torch.device) -> None:
    table = Table(layers_of(128, 512, 1, device), HEADS, EPS)
    x = stream(2, 20, 128, device)
    good = blocks(x.clone(), table)
    x[1, 3, 5] = float("nan")
    found = blocks(x, table)
    assert torch.equal(found[0], good[0]) and not found[1, 3].isfinite().all()


def test_what_it_does_not_take_is_said(device: torch.device) -> None:
    layers = layers_of(128, 512, 2, device)
    assert refused(layers, HEADS) is None
    assert "no layers" in str(refused([], HEADS))
    assert "heads of 32, 64 or 128" in str(refused(layers, 8))
    assert "differ in shape" in str(refused([*layers, *layers_of(128, 1024, 1, device)], HEADS))
    assert "multiples of 128" in str(refused(layers_of(192, 512, 1, device), 3))
    plain = replace(layers[0], fc1=replace(layers[0].fc1, weight=layers[0].fc1.weight.float()))
    assert "float8_e4m3fn" in str(refused([plain], HEADS))
    halved = replace(layers[0], norm1=(layers[0].norm1[0].half(), layers[0].norm1[1]))
    assert "float32" in str(refused([halved], HEADS))
    with pytest.raises(ValueError, match="no layers"):
        Table([], HEADS, EPS)


@pytest.mark.parametrize("shape", [(1, 20, 64), (1, 300, 128), (9, 200, 128), (1, 0, 128)], ids=str)
def test_a_stream_that_does_not_fit_is_an_error(shape: tuple[int, int, int], device: torch.device) -> None:
    table = Table(layers_of(128, 512, 1, device), HEADS, EPS)
    with pytest.raises(ValueError, match=r"expected contiguous 16-bit values|not for one kernel"):
        blocks(torch.zeros(shape, dtype=torch.bfloat16, device=device), table)
    with pytest.raises(ValueError, match=r"got torch\.float32"):
        blocks(torch.zeros(1, 20, 128, device=device), table)


def test_it_is_for_what_fits_in_one_turn() -> None:
    device = torch.device("cpu")
    large = Table(layers_of(1024, 4096, 1, device), 16, EPS)
    assert takes(1, 197, large, Cut(), device) and not takes(2, 197, large, Cut(), device)
    assert not takes(1, 197, large, Cut(fc1=64), device)  # 256 tiles, and at most 132 programs
    small = Table(layers_of(128, 512, 1, device), 2, EPS)
    assert takes(2, 130, small, Cut(), device) and not takes(2, 133, small, Cut(), device)  # two rows of a norm each
    assert not takes(1, 577, small, Cut(), device) and not takes(0, 17, small, Cut(), device)


def test_each_way_has_a_name() -> None:
    assert str(Cut()) == "one kernel 128 32 128 64/2 loads8"
    assert len({str(cut) for cut in cuts()}) == len(cuts())
