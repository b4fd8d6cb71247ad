"""All blocks of a network in one kernel, for single images in FP8; where it is to be had and quicker than one by one.

whole = Whole.of(layers, shape, attending)      # None where the kernel does not take them
for name, way in whole.ways(x).items():
    x = way(x)                                  # (B, N, C) behind all of them, in place
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from petalite.device import capability_of
from petalite.engine.attending import OWN_ATTENTION, Attending
from petalite.engine.expanded import Expanded
from petalite.engine.weights import Norm, Shape

if TYPE_CHECKING:
    from petalite.engine.cuda import Layers
    from petalite.engine.kernels.blocks import Layer, Table

_HOPPER = (9, 0)


class Whole:
    """The blocks of one engine, of which the kernel's table is made."""

    def __init__(self, table: Table) -> None:
        self.table = table

    @classmethod
    def of(cls, layers: Sequence[Layers], shape: Shape, attending: Attending) -> Whole | None:
        """None where one of the layers, or the device, is not for it."""
        products, device = attending.products, attending.device
        if products.codes != torch.float8_e4m3fn or attending.name != OWN_ATTENTION or shape.gelu != "none":
            return None
        if device.type == "cuda" and (capability_of(device) or (0, 0)) < _HOPPER:
            return None
        eps = {norm.eps for layer in layers for norm in (layer.norm1, layer.norm2)}
        found = [_layer(layer) for layer in layers]
        whole = [layer for layer in found if layer is not None]
        if len(eps) != 1 or len(whole) != len(found):
            return None
        from petalite.engine.kernels.blocks import Table, refused

        return cls(Table(whole, shape.heads, eps.pop())) if refused(whole, shape.heads) is None else None

    def key(self, x: Tensor) -> str:
        """The name of this among the choices: images, tokens, channels, blocks."""
        B, N, C = x.shape
        return f"blocks fp8 {B}x{N}x{C}x{len(self.table.layers)}"

    def ways(self, x: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
        """What makes of streams like x (B, N, C) those behind all blocks, in place, by name; none where it is not for them."""
        from petalite.engine.kernels.blocks import blocks, cuts, takes

        B, N, _ = x.shape
        fit = [cut for cut in cuts() if takes(B, N, self.table, cut, x.device)]
        return {str(cut): partial(blocks, table=self.table, cut=cut) for cut in fit}


def _layer(layer: Layers) -> Layer | None:
    """A layer as the kernel takes it; None where something about it is not for the kernel."""
    from petalite.engine.kernels.blocks import Layer, Product

    parts = (layer.qkv, layer.proj, layer.fc1, layer.fc2)
    steps = (layer.qkv.step, layer.heads, layer.proj.step, layer.fc1.step, layer.fc2.step)
    known = tuple(step for step in steps if step is not None)
    if len(known) != 5 or layer.merge or layer.sized:
        return None

    def product(part: Expanded) -> Product:
        assert part.folded is not None  # it has a step
        return Product(part.weight, part.folded, None if part.bias is None else part.bias.float())

    def norm(part: Norm) -> tuple[Tensor, Tensor]:
        return part.weight.float(), part.bias.float()

    qkv, proj, fc1, fc2 = map(product, parts)
    return Layer(norm(layer.norm1), norm(layer.norm2), qkv, proj, fc1, fc2, known)
