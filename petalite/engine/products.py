"""Matrix products in the precision that was chosen, each shape by the kernel that a short trial found quickest for it.

    products = Products("fp8", torch.bfloat16, Choices(trials_for(device), device))
    layer = products.expand(network.blocks[0].fc1)
    y = products.multiply(codes, layer)                          # (rows, out), in 16 bits
    codes = products.multiply_gelu(codes, layer, step, "none")   # GELU of it, as the next product takes it
    codes = products.multiply_codes(codes, layer, step)          # codes of it
    x = products.multiply_add(codes, layer, x)                   # added to what stands in x

Weights of 8 bits have a scale for each output (row of the weight), inputs one for each token or one for all, known from
calibration. cuBLAS through PyTorch, cuBLASLt's next best kernels (cublaslt.py) and Petalite's own (kernels/product.py)
compute the same; which is quickest depends on the shape. On a CPU the products are exact and slow: they are for tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from petalite.device import capability_of
from petalite.engine import cublaslt
from petalite.engine.expanded import CODES, LARGEST, Expanded, encode, even, step_of
from petalite.engine.kernels import Quantized
from petalite.engine.kernels.tiles import Config, configs
from petalite.engine.trial import Choices
from petalite.engine.weights import Linear

CUBLAS, CUBLASLT, SEPARATE, OWN = "cublas", "cublaslt", "separate", "petalite"
#: Results of two kernels for the same product differ by rounding alone, of codes where those are written.
_ROUNDING, _ROUNDING_OF_CODES = 0.02, 0.1
#: The fewest rows of 8-bit integers that PyTorch multiplies, and the oldest GPUs on which Triton does.
_LEAST_ROWS, _TRITON_INT8 = 17, (8, 0)
#: How many of cuBLASLt's kernels take part in a trial: on an H200 the best was among its first six.
_RANKED = 6


class Products:
    """The products of one engine, in one precision, on the device of its choices.

    compute: fp32, fp16, bf16, int8 or fp8. plain: what stands between the products.
    """

    def __init__(self, compute: str, plain: torch.dtype, choices: Choices) -> None:
        self.compute, self.plain, self.choices, self.device = compute, plain, choices, choices.device
        self.codes = CODES.get(compute)
        self._capability = capability_of(self.device) or (0, 0)  # a CPU has no use for it
        self._lt = self.device.type == "cuda" and cublaslt.available() is None
        self._inverses: dict[int, tuple[Tensor, Tensor]] = {}
        self._ones: dict[int, Tensor] = {}
        self._alike: dict[torch.Size, list[Tensor]] = {}

    def step(self, span: tuple[float, float] | None, bound: float | None) -> Tensor | None:
        """What a step of a layer's input codes is worth, float32 (1,); None where each token needs its own.

        span: what calibration saw; bound: what the weights prove that no input exceeds. Integers need the former. Floating
        point takes the latter, and of a span that is far smaller the room that it leaves for outliers.
        """
        if self.codes is None or (span is None and (bound is None or not self.codes.is_floating_point)):
            return None
        worth = [step_of(span, self.codes)] if span is not None else []
        worth += [max(bound, 1e-6) / LARGEST[self.codes]] if bound is not None and self.codes.is_floating_point else []
        return torch.tensor([min(worth)], device=self.device)

    def expand(self, linear: Linear, step: Tensor | None = None) -> Expanded:
        """A layer made ready. step: float32 (1,) where its inputs are quantized with one scale for all."""
        weight = linear.weight.to(self.device)
        bias = None if linear.bias is None else linear.bias.to(self.device)
        scale = folded = None
        if self.codes is None:
            weight = weight.to(self.plain)
        else:
            # one scale for all is what GPUs multiply fastest, and floating point loses nothing by it
            whole = step is not None and self.codes.is_floating_point and even(weight)
            weight, scale = encode(weight, self.codes, whole=whole)
            folded = None if step is None else scale * step
        plain_bias = None if bias is None else bias.to(self.plain)
        weight = weight.contiguous()
        self._alike.setdefault(weight.shape, []).append(weight)
        return Expanded(linear.name, weight, scale, bias, plain_bias, step, folded)

    def rows(self, layer: Expanded, first: int, last: int) -> Expanded:
        """The outputs of a layer from `first` on, `last` excluded; nothing is copied."""
        part = slice(first, last)
        scale, folded = (one if one is None or one.numel() == 1 else one[part] for one in (layer.scale, layer.folded))
        bias, plain_bias = (None if one is None else one[part] for one in (layer.bias, layer.plain_bias))
        self._alike.setdefault(layer.weight[part].shape, []).append(layer.weight[part])
        return replace(layer, weight=layer.weight[part], scale=scale, folded=folded, bias=bias, plain_bias=plain_bias)

    def taken(self, values: Tensor, layer: Expanded) -> Quantized:
        """Plain values (rows, in) as `layer` takes them."""
        return (values, None) if self.codes is None else self.rounded(values, layer.step)

    def rounded(self, values: Tensor, step: Tensor | None) -> Quantized:
        """Plain values (rows, columns) as codes, a step of which is worth `step`; with a scale for each row where None."""
        from petalite.engine.kernels.quantize import quantize

        assert self.codes is not None, f"{self.compute} has no codes"
        return quantize(values, self.codes, step)

    def multiply(self, a: Quantized, layer: Expanded) -> Tensor:
        """(rows, in), with a scale for each row or one for all where it has codes -> (rows, out), plain."""
        if self.device.type == "cpu":
            return self._exact(a, layer)
        key = self.key(a, layer, "plain")
        y: Tensor = self._way(self.choices.choose(key, partial(self._ways, a, layer), _close), a, layer)()
        return y

    def multiply_codes(self, a: Quantized, layer: Expanded, step: Tensor) -> Quantized:
        """The product as codes, a step of which is worth `step` (float32, (1,))."""

        def separate(other: Expanded) -> Quantized:
            return self.rounded(self.multiply(a, other), step)

        if self.device.type == "cpu":
            return separate(layer)
        return self._ending(a, layer, step, separate, gelu=False)

    def multiply_gelu(self, a: Quantized, layer: Expanded, step: Tensor | None, gelu: str) -> Quantized:
        """GELU of the product, as the next product takes it; step: of its codes where calibration has said so.

        gelu: `none` (exact) or `tanh`.
        """

        def separate(other: Expanded) -> Quantized:
            return self._separate(a, other, step, gelu)

        fusable = gelu == "none" and self.compute != "fp32" and (self.codes is None or step is not None)
        if not fusable or self.device.type == "cpu":
            return separate(layer)
        return self._ending(a, layer, step, separate, gelu=True)

    def _ending(
        self,
        a: Quantized,
        layer: Expanded,
        step: Tensor | None,
        separate: Callable[[Expanded], Quantized],
        *,
        gelu: bool,
    ) -> Quantized:
        """The product and what follows it, in one kernel or in two: whichever is quickest."""

        def ended(name: str, other: Expanded) -> Quantized:
            return self._ended(name, a, other, step, gelu=gelu)

        def ways() -> dict[str, Callable[[], Quantized]]:
            names = self._enders(a, layer, gelu=gelu)
            return {
                SEPARATE: self._in_turn(layer, separate),
                **{name: self._in_turn(layer, partial(ended, name)) for name in names},
            }

        key = self.key(a, layer, "gelu" if gelu else "codes")
        name = self.choices.choose(key, ways, _close_codes if self.codes else _close_values)
        return separate(layer) if name == SEPARATE else ended(name, layer)

    def adds(self, a: Quantized, layer: Expanded) -> bool:
        """Whether `multiply_add` is there for such a product."""
        return self._lt_takes(a, layer)

    def multiply_add(self, a: Quantized, layer: Expanded, x: Tensor) -> Tensor:
        """Add the product to `x` (rows, out), plain, in place; returns `x`. Where `adds` says so."""

        def added(index: int, other: Expanded, place: Tensor) -> Tensor:
            return self._by_cublaslt(index, a, other, place, residual=place)

        def ways() -> dict[str, Callable[[], Tensor]]:
            place = x.clone()  # which the trial adds to, time and again
            count = len(self._ranked(a, layer, place, residual=place))
            return {
                f"{CUBLASLT} {index}": self._in_turn(layer, partial(added, index, place=place))
                for index in range(count)
            }

        name = self.choices.choose(self.key(a, layer, "added"), ways)
        return added(int(name.split()[1]), layer, x)

    def key(self, a: Quantized, layer: Expanded, written: str) -> str:
        """A product's name among the choices: precision, rows (their class) x inputs x outputs, what is written."""
        rows, (outputs, inputs) = a[0].shape[0], layer.weight.shape
        between = ""
        if self.codes is not None:
            factors = self._scales(a, layer)
            whole = factors[0] is None and factors[1] is not None and factors[1].numel() == 1
            between = f" {str(self.plain).removeprefix('torch.')}{' whole' if whole else ''}"
        return f"{self.compute}{between} {shape_class(rows)}x{inputs}x{outputs} {written}"

    def _ways(self, a: Quantized, layer: Expanded) -> dict[str, Callable[[], Tensor]]:
        """Every kernel that takes this shape."""
        names = [CUBLAS] if self._cublas_takes(a[0], layer) else []
        # the first of cuBLASLt's is what PyTorch runs
        names += [f"{CUBLASLT} {index}" for index in range(1, len(self._ranked(a, layer, self._empty(a, layer))))]
        if self.compute != "fp32":
            names += self._own_ways(a[0], layer)

        def run(name: str, other: Expanded) -> Tensor:
            return self._way(name, a, other)()

        return {name: self._in_turn(layer, partial(run, name)) for name in names}

    def _in_turn(self, layer: Expanded, way: Callable[[Expanded], Any]) -> Callable[[], Any]:
        """`way` with the weights of all layers of this shape in turn: a pass through the model finds none in a cache."""
        weights = [layer.weight, *(other for other in self._alike[layer.weight.shape] if other is not layer.weight)]
        turns = itertools.cycle([replace(layer, weight=weight) for weight in weights])
        return lambda: way(next(turns))

    def _way(self, name: str, a: Quantized, layer: Expanded) -> Callable[[], Tensor]:
        if name == CUBLAS:
            return partial(self._cublas, a, layer)
        if name.startswith(CUBLASLT):
            return lambda: self._by_cublaslt(int(name.split()[1]), a, layer, self._empty(a, layer))
        return partial(self._own, a, layer, self._own_ways(a[0], layer)[name])

    def _cublas_takes(self, a: Tensor, layer: Expanded) -> bool:
        outputs, inputs = layer.weight.shape
        if self.codes is None:
            return True
        if self.codes == torch.int8:
            return inputs % 8 == 0 and outputs % 8 == 0
        return inputs % 16 == 0 and outputs % 16 == 0

    def _cublas(self, a: Quantized, layer: Expanded) -> Tensor:
        values, _ = a
        if self.codes is None:
            return F.linear(values, layer.weight, layer.plain_bias)
        rows, columns = self._scales(a, layer)
        assert columns is not None
        if self.codes == torch.int8:
            rows_left = max(0, _LEAST_ROWS - len(values))
            filled = F.pad(values, (0, 0, 0, rows_left)) if rows_left else values
            sums = torch._int_mm(filled, layer.weight.t())[: len(values)].to(torch.float32)
            scaled = sums * columns if rows is None else sums * rows[:, None] * columns
            return (scaled if layer.bias is None else scaled + layer.bias).to(self.plain)
        whole = rows is None and columns.numel() == 1
        y: Tensor = torch._scaled_mm(
            values,
            layer.weight.t(),
            scale_a=self._one_a_row(1) if whole else (self._one_a_row(len(values)) if rows is None else rows)[:, None],
            scale_b=columns if whole else columns[None],
            bias=layer.plain_bias,
            out_dtype=self.plain,
            use_fast_accum=True,
        )
        return y

    def _own(self, a: Quantized, layer: Expanded, config: Config) -> Tensor:
        from petalite.engine.kernels.product import product

        rows, columns = self._scales(a, layer)
        return product(a[0], layer.weight, **_factors(rows, columns), bias=layer.bias, dtype=self.plain, config=config)

    def _enders(self, a: Quantized, layer: Expanded, *, gelu: bool) -> list[str]:
        """The kernels that also do what follows the product."""
        names = list(self._own_ways(a[0], layer))
        # GELU's tanh form is within a step of the smallest codes, but not of 16-bit values
        if self.codes is not None:
            out = self._empty(a, layer, self.codes)
            names += [f"{CUBLASLT} {index}" for index in range(len(self._ranked(a, layer, out, gelu=gelu)))]
        return names

    def _ended(self, name: str, a: Quantized, layer: Expanded, step: Tensor | None, *, gelu: bool) -> Quantized:
        """The product with what follows it in its epilogue."""
        written = self.codes or self.plain
        if name.startswith(CUBLASLT):
            assert step is not None
            out = self._empty(a, layer, written)
            return self._by_cublaslt(int(name.split()[1]), a, layer, out, gelu=gelu, step=step), step
        from petalite.engine.kernels.product import product

        rows, columns = self._scales(a, layer)
        values = product(
            a[0], layer.weight, **_factors(rows, columns), bias=layer.bias, activation="gelu" if gelu else None,
            dtype=written, out_scale=step, config=self._own_ways(a[0], layer)[name],
        )  # fmt: skip
        return values, step

    def _lt_takes(self, a: Quantized, layer: Expanded) -> bool:
        """cuBLASLt has 16-bit values, and codes of float8 with one scale for all."""
        if not self._lt or self.compute in ("fp32", "int8"):
            return False
        rows, columns = self._scales(a, layer)
        return rows is None and (columns is None or columns.numel() == 1) and self._cublas_takes(a[0], layer)

    def _ranked(self, a: Quantized, layer: Expanded, out: Tensor, **ends: Any) -> list[cublaslt.Algorithm]:
        if not self._lt_takes(a, layer):
            return []
        return cublaslt.algorithms(a[0], layer.weight, out, bias=layer.plain_bias, most=_RANKED, **ends)

    def _by_cublaslt(
        self,
        index: int,
        a: Quantized,
        layer: Expanded,
        out: Tensor,
        *,
        residual: Tensor | None = None,
        gelu: bool = False,
        step: Tensor | None = None,
    ) -> Tensor:
        ranked = self._ranked(a, layer, out, residual=residual, gelu=gelu)
        # a trial is for shapes that are alike; one of them may have fewer
        algorithm = ranked[min(index, len(ranked) - 1)]
        return cublaslt.multiply(
            a[0], layer.weight, out, algorithm, scale=self._scales(a, layer)[1], bias=layer.plain_bias,
            residual=residual, gelu=gelu, out_factor=None if step is None else self._inverse(step),
        )  # fmt: skip

    def _empty(self, a: Quantized, layer: Expanded, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(len(a[0]), len(layer.weight), dtype=dtype or self.plain, device=self.device)

    def _inverse(self, step: Tensor) -> Tensor:
        """1 / step, made once."""
        if id(step) not in self._inverses:
            self._inverses[id(step)] = (step, 1 / step)  # with the step, so that no other gets its id
        return self._inverses[id(step)][1]

    def _separate(self, a: Quantized, layer: Expanded, step: Tensor | None, gelu: str) -> Quantized:
        """The product, then GELU in a pass of its own."""
        from petalite.engine.kernels.gelu import gelu as apply_gelu

        return apply_gelu(self.multiply(a, layer), dtype=self.codes or self.plain, scale=step, approximate=gelu)

    def _exact(self, a: Quantized, layer: Expanded) -> Tensor:
        """The product in float64, rounded once."""
        sums = a[0].double() @ layer.weight.double().mT
        rows, columns = self._scales(a, layer)
        sums = sums if rows is None else sums * rows.double()[:, None]
        sums = sums if columns is None else sums * columns.double()
        return (sums if layer.bias is None else sums + layer.bias.double()).to(self.plain)

    def _scales(self, a: Quantized, layer: Expanded) -> tuple[Tensor | None, Tensor | None]:
        """What each row and each column of the sums of codes is multiplied with; None for ones."""
        values, scale = a
        if self.codes is None:
            return None, None
        if scale is None or scale is layer.step:
            assert layer.folded is not None, f"{layer.name}: codes without a scale, and none from calibration"
            return None, layer.folded
        assert scale.shape == values.shape[:1], f"{layer.name}: {tuple(scale.shape)} scales for {len(values)} rows"
        return scale, layer.scale

    def _one_a_row(self, rows: int) -> Tensor:
        """Ones (rows,), made once: PyTorch's product takes a scale for each column only with one for each row."""
        if rows in self._ones:
            return self._ones[rows]
        ones = torch.ones(rows, device=self.device)
        if not torch.cuda.is_current_stream_capturing():  # what is made inside a graph is the graph's own
            self._ones[rows] = ones
        return ones

    def _own_ways(self, a: Tensor, layer: Expanded) -> dict[str, Config]:
        """The own kernel's ways to cut this product, by name; the same for all rows of a class."""
        (outputs, inputs), rows = layer.weight.shape, shape_class(a.shape[0])
        if inputs % 16 or (self.codes == torch.int8 and self._capability < _TRITON_INT8):
            return {}
        found = configs(rows, outputs, inputs, layer.weight.dtype, self._capability)
        return {f"{OWN} {config}": config for config in found}


def _factors(rows: Tensor | None, columns: Tensor | None) -> dict[str, Any]:
    """Scales as the own kernel takes them."""
    if rows is None and columns is not None and columns.numel() == 1:
        return {"a_scale": columns, "w_scale": None}
    return {"a_scale": rows, "w_scale": columns}


def shape_class(rows: int) -> int:
    """`rows` rounded up to a power of two where there are more than 16: shapes so alike share a trial."""
    return rows if rows <= 16 else 1 << (rows - 1).bit_length()


def _close(one: Tensor, other: Tensor, bound: float = _ROUNDING) -> bool:
    one, other = one.float(), other.float()
    return bool((one - other).norm() <= bound * one.norm() + 1e-6)


def _close_values(one: Quantized, other: Quantized) -> bool:
    return _close(one[0], other[0])


def _close_codes(one: Quantized, other: Quantized) -> bool:
    return _close(one[0], other[0], _ROUNDING_OF_CODES)
