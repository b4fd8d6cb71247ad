"""The forward pass on a GPU: uint8 pixels to logits in few kernels, all of which a CUDA graph can hold.

    fused = Fused(read_network(checkpoint), torch.device("cuda", 0), "fp8")
    logits = fused(pixels)               # float32 (B, classes) on the device, not synchronized
    fused.attention, fused.scales        # what runs: 'petalite', 'static for …'

What lies between two products is one pass over memory: adding a branch to the residual stream, normalizing and
quantizing is one kernel; attention writes what the next product takes; GELU is the end of the product before it, where a
trial finds that quicker; queries, keys and values go to attention as 8-bit floats; and a product adds itself to the
stream where a trial finds that quicker too. In the last block of a model that reads its class token alone, the other
tokens only give keys and values. Everything is chosen by shape, nothing by value, and nothing waits for the device.

FP8 has one scale for all tokens everywhere: from the weights it is proven what no input can exceed (bounds.py), and
floating point loses nothing by room above its values. Integers would; they have a scale for each token, computed where
the codes are written, and behind attention, where a whole row is never in one place, one that calibration has found
(`plan.activations`). Not so behind GELU: of its outputs few are large and many small, and 8 bits are too few for those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from petalite.attention import BACKENDS
from petalite.device import capability_of
from petalite.engine.attending import OWN_ATTENTION, Attending, heads_of
from petalite.engine.bounds import bounds
from petalite.engine.choice import plain_dtype
from petalite.engine.expanded import Expanded
from petalite.engine.kernels import Quantized
from petalite.engine.kernels.launching import compile_together
from petalite.engine.products import SEPARATE, Products
from petalite.engine.trial import Choices, Trials, trials_for
from petalite.engine.weights import Block, Network, Norm
from petalite.engine.whole import Whole
from petalite.errors import PetaliteError, did_you_mean
from petalite.merging import merge_tokens

__all__ = ["OWN_ATTENTION", "SCALES", "Fused"]
#: `auto`: one for all tokens wherever that loses nothing; `token`: one for each token everywhere.
SCALES = ("auto", "token")


@dataclass(frozen=True)
class Layers:
    """One block on the device. query, keys: the parts of `qkv`, in a last block of which the head reads some tokens only.

    heads: float32 (1,), what a step of codes of queries, keys and values is worth, where they may be codes.
    """

    norm1: Norm
    qkv: Expanded
    heads: Tensor | None
    query: Expanded | None
    keys: Expanded | None
    q_norm: Norm | None
    k_norm: Norm | None
    proj: Expanded
    norm2: Norm
    fc1: Expanded
    fc2: Expanded
    merge: int
    sized: bool


class Fused:
    """A network on a device, in one precision.

    compute: fp32, fp16, bf16, int8 or fp8. attention: `petalite`, a backend of `petalite.attention`, or `auto`: the
    quickest of them here. trials: where the quickest kernels are remembered. scales: one of SCALES.
    Raises PetaliteError for an attention that cannot run here.
    """

    def __init__(
        self,
        network: Network,
        device: torch.device,
        compute: str,
        attention: str = "auto",
        trials: Trials | None = None,
        scales: str = "auto",
    ) -> None:
        if scales not in SCALES:
            raise PetaliteError(f"unknown scales '{scales}'{did_you_mean(scales, SCALES)}; known: {', '.join(SCALES)}")
        self._static = scales == "auto"
        self._calibrated = any(linear.span is not None for linear in network.linears())
        self.shape, self.device, self.compute = network.shape, device, compute
        self.plain = plain_dtype(compute, capability_of(device))
        self.choices = Choices(trials or trials_for(device), device)
        self.products = Products(compute, self.plain, self.choices)
        self.codes = self.products.codes
        self._pixels = self._plain_linear(network.pixels.weight, network.pixels.bias)
        self._normalized = self._plain_linear(network.normalized.weight, network.normalized.bias)
        self._tokens, self._positions = (part.to(device, self.plain) for part in (network.tokens, network.positions))
        self._norm_pre, self._norm, self._fc_norm = map(self._placed, (network.norm_pre, network.norm, network.fc_norm))
        last = len(network.blocks) - 1
        self._blocks = [self._layers(block, index == last) for index, block in enumerate(network.blocks)]
        # the answers are worth 32 bits, and a product this small costs nothing
        self._head_weight = network.head.weight.to(device)
        self._head_bias = None if network.head.bias is None else network.head.bias.to(device)
        # what a first image needs is compiled at once; without it, each kernel where it is met, one after the other
        compile_together([lambda: self._first(attention)], device)
        self._attend(attention)

    @property
    def scales(self) -> str | None:
        """How inputs of products get their scales, in words; None where they have none."""
        if self.codes is None:
            return None
        layers = [layer for block in self._blocks for layer in (block.qkv, block.proj, block.fc1, block.fc2)]
        static = sum(layer.step is not None for layer in layers)
        if static == 0:
            return "per token"
        if static == len(layers):
            return "static, from bounds of the weights" + (" and calibrated ranges" if self._calibrated else "")
        return f"static for {static} of {len(layers)} products, per token elsewhere"

    def report(self) -> dict[str, Any]:
        """JSON values: what was chosen, for each shape that has been met."""
        return {"attention": self.attention, "scales": self.scales, "kernels": self.choices.report()}

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits float32 (B, classes) of pixels (B, 3, H, W) on the device: uint8, or floating point and normalized."""
        x = self._embed(pixels)  # B, N, C
        pooled = self._through(x)
        if self._fc_norm is not None:
            norm = self._fc_norm
            pooled = F.layer_norm(pooled, pooled.shape[-1:], norm.weight, norm.bias, norm.eps)
        return F.linear(pooled, self._head_weight, self._head_bias)

    def _attend(self, attention: str) -> None:
        first = self._blocks[0]
        self.attending = Attending(self.shape, self.products, attention, first.proj, first.heads)
        self.attention = self.attending.name
        self._whole = Whole.of(self._blocks, self.shape, self.attending)

    def _first(self, attention: str) -> None:
        """All that is done until there is the answer to an image."""
        self._attend(attention)
        self(torch.zeros(1, 3, *self.shape.image_size, dtype=torch.uint8, device=self.device))

    def _embed(self, pixels: Tensor) -> Tensor:
        """Patches with their positions behind the prefix tokens, (B, N, C)."""
        B, prefix, C = len(pixels), self.shape.prefix, self.shape.width
        (rows, columns), (high, wide) = self.shape.grid, self.shape.patch
        pixels = pixels[:, :, : rows * high, : columns * wide]  # what is left at the edges is not seen
        if pixels.dtype == torch.uint8:
            from petalite.engine.kernels.patches import patches

            cut, (weight, bias) = patches(pixels.contiguous(), self.shape.patch, self.plain), self._pixels
        else:
            cut = pixels.to(self.plain).reshape(B, 3, rows, high, columns, wide).permute(0, 2, 4, 1, 3, 5)
            cut, (weight, bias) = cut.reshape(B * rows * columns, -1), self._normalized
        embedded = F.linear(cut, weight, bias).view(B, -1, C)
        x = embedded.new_empty(B, prefix + embedded.shape[1], C)
        x[:, :prefix] = self._tokens
        torch.add(embedded, self._positions, out=x[:, prefix:])
        if self._norm_pre is None:
            return x
        return self._normed(x, self._norm_pre, None, dtype=self.plain)[0].view_as(x)

    def _through(self, x: Tensor) -> Tensor:
        """What the head reads of a stream (B, N, C) behind all blocks, float32 (B, ·): by what is quickest here."""
        ways = self._whole.ways(x) if self._whole is not None else {}
        if self._whole is None or not ways:
            return self._one_by_one(x)

        def trials() -> dict[str, Callable[[], Tensor]]:
            found: dict[str, Callable[[], Tensor]] = {SEPARATE: lambda: self._one_by_one(x.clone())}
            return found | {name: lambda way=way: self._at_once(way, x.clone()) for name, way in ways.items()}

        name = self.choices.choose(self._whole.key(x), trials, _alike)
        return self._one_by_one(x) if name == SEPARATE else self._at_once(ways[name], x)

    def _at_once(self, way: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """As `_through`, all blocks in one kernel."""
        x = way(x)
        return self._class_token(x, None) if self.shape.read else self._mean(x, None, None)

    def _one_by_one(self, x: Tensor) -> Tensor:
        """As `_through`, with kernels of their own for the parts of each block."""
        sizes: Tensor | None = None
        branch: Tensor | None = None
        for block in self._blocks[:-1] if self.shape.read else self._blocks:
            x, sizes, branch = self._block(block, x, sizes, branch)
        return self._read(self._blocks[-1], x, sizes, branch) if self.shape.read else self._mean(x, sizes, branch)

    def _block(
        self, block: Layers, x: Tensor, sizes: Tensor | None, branch: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """One block for all tokens: the stream (B, N, C) and the last branch, if it is still to be added to it."""
        B, N, _ = x.shape
        normed = self._normed(x, block.norm1, branch, block.qkv.step)
        qkv = self._queries_keys_values(normed, block, B)
        attended = self.attending(qkv, B, block.proj, sizes)
        if block.sized and sizes is None:
            sizes = torch.ones(B, N, device=x.device)
        if block.merge and sizes is not None:
            x, sizes = self._merged(x, sizes, self.products.multiply(attended, block.proj), qkv[0], block.merge)
            branch = None
        else:
            branch = self._added(attended, block.proj, x, block.norm2, block.fc1.step)
        normed = self._normed(x, block.norm2, branch, block.fc1.step)
        hidden = self.products.multiply_gelu(normed, block.fc1, block.fc2.step, self.shape.gelu)
        return x, sizes, self._added(hidden, block.fc2, x, block.norm1, block.qkv.step)

    def _queries_keys_values(self, normed: Quantized, block: Layers, B: int) -> Quantized:
        """Rows (B·N, 3·H·D): codes where the attention takes them, else plain."""
        if block.heads is not None and self.attending.takes_codes:
            return self.products.multiply_codes(normed, block.qkv, block.heads)
        qkv = self.products.multiply(normed, block.qkv)
        query, key, _ = heads_of(qkv.view(B, -1, qkv.shape[-1]), self.shape.heads)
        for part, norm in ((query, block.q_norm), (key, block.k_norm)):
            if norm is not None:
                part.copy_(_layer_norm(part, norm))
        return qkv, None

    def _added(self, a: Quantized, layer: Expanded, x: Tensor, norm: Norm, step: Tensor | None) -> Tensor | None:
        """Add the product to the stream in place; or return it, for the next norm to add: whichever is quicker.

        norm, step: of the norm behind it, or of one like it.
        """
        if not self.products.adds(a, layer):
            return self.products.multiply(a, layer)

        def ways() -> dict[str, Callable[[], Quantized]]:
            place = x.clone()

            def at_once() -> Quantized:
                self.products.multiply_add(a, layer, place.view(-1, place.shape[-1]))
                return self._normed(place, norm, None, step)

            return {
                SEPARATE: lambda: self._normed(place, norm, self.products.multiply(a, layer), step),
                "added": at_once,
            }

        if self.choices.choose(self.products.key(a, layer, "then norm"), ways) == SEPARATE:
            return self.products.multiply(a, layer)
        self.products.multiply_add(a, layer, x.view(-1, x.shape[-1]))
        return None

    def _read(self, block: Layers, x: Tensor, sizes: Tensor | None, branch: Tensor | None) -> Tensor:
        """The last block for the tokens that the head reads, then the final norm, float32 (B, read·C)."""
        assert block.query is not None and block.keys is not None
        B, N, C = x.shape
        read = self.shape.read
        normed = self._normed(x, block.norm1, branch, block.qkv.step)
        heads = self.shape.heads
        key, value = self.products.multiply(normed, block.keys).view(B, N, 2, heads, -1).permute(2, 0, 3, 1, 4)
        first = self.products.multiply(_first_rows(normed, B, read), block.query).view(B, read, heads, -1)
        query = _layer_norm(first.transpose(1, 2), block.q_norm)
        bias = None if sizes is None else sizes.log()[:, None, None]
        # for a few queries; neither the own kernel nor cuDNN's is made for them
        name = self.attention if self.attention not in (OWN_ATTENTION, "cudnn") else "sdpa"
        out = BACKENDS[name].attend(query, _layer_norm(key, block.k_norm), value, bias)
        attended = self.products.taken(out.transpose(1, 2).reshape(B * read, -1), block.proj)
        x = x[:, :read].reshape(B * read, C).contiguous()
        normed = self._normed(x, block.norm2, self.products.multiply(attended, block.proj), block.fc1.step)
        hidden = self.products.multiply_gelu(normed, block.fc1, block.fc2.step, self.shape.gelu)
        return self._class_token(x.view(B, read, C), self.products.multiply(hidden, block.fc2))

    def _class_token(self, x: Tensor, branch: Tensor | None) -> Tensor:
        """The final norm of the tokens that the head reads, the first of x (B, N, C), float32 (B, read·C)."""
        B, read = len(x), self.shape.read
        x = x[:, :read].contiguous()
        if self._norm is None:
            return (x.float() if branch is None else x.float() + branch.view_as(x).float()).view(B, -1)
        return self._normed(x, self._norm, branch, dtype=torch.float32)[0].view(B, -1)

    def _mean(self, x: Tensor, sizes: Tensor | None, branch: Tensor | None) -> Tensor:
        """The final norm and the mean over tokens, each as often as it stands for patches, float32 (B, C)."""
        start = self.shape.mean_from
        if self._norm is None:
            x = x if branch is None else x.add_(branch.view_as(x))
        else:
            x = self._normed(x, self._norm, branch, dtype=self.plain)[0].view_as(x)
        if sizes is None:
            return x[:, start:].mean(dim=1, dtype=torch.float32)
        share = sizes[:, None, start:]  # B, 1, tokens
        return ((share / share.sum(-1, keepdim=True)) @ x[:, start:].float())[:, 0]

    def _merged(self, x: Tensor, sizes: Tensor, branch: Tensor, qkv: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The stream with `branch` added and `count` tokens merged away, (B, N - count, C), and the tokens' sizes."""
        from petalite.engine.kernels.merging import match, merge, takes

        qkv = qkv.view(*x.shape[:2], -1)
        if not takes(x.shape[1], self.shape.prefix, self.shape.head_dim, self.device):
            key = heads_of(qkv, self.shape.heads)[1].to(self.plain)
            return merge_tokens(x.add_(branch.view_as(x)), sizes, key, count, self.shape.prefix)
        into = match(qkv, self.shape.heads, count, self.shape.prefix)
        return merge(x, sizes, into, count, add=branch)

    def _normed(
        self, x: Tensor, norm: Norm, branch: Tensor | None, step: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Quantized:
        """LayerNorm of the stream (…, C), after `branch` is added to it in place; rows as the next product takes them."""
        from petalite.engine.kernels.norm import norm as apply_norm

        rows, dtype = x.view(-1, x.shape[-1]), dtype or self.codes or self.plain
        return apply_norm(rows, norm.weight, norm.bias, norm.eps, add=branch, dtype=dtype, scale=step)

    def _layers(self, block: Block, last: bool) -> Layers:
        expand, step = self.products.expand, self.products.step
        block = block.to(self.device)  # whose float64 is quicker than a CPU's
        found = bounds(block) if self._static else None
        # integers: only behind attention, where a row is never in one place; elsewhere a scale a token costs nothing
        inner = found if self.codes == torch.float8_e4m3fn else None
        before = {
            "qkv": step(None, inner.qkv) if inner else None,
            "heads": step(None, inner.heads) if inner and block.q_norm is None and block.k_norm is None else None,
            "proj": step(block.proj.span, found.proj) if found else None,
            "fc1": step(None, inner.fc1) if inner else None,
            "fc2": step(block.fc2.span, inner.fc2) if inner else None,
        }
        qkv = expand(block.qkv, before["qkv"])
        query = keys = None
        if last and self.shape.read:
            width = len(qkv.weight) // 3
            query, keys = self.products.rows(qkv, 0, width), self.products.rows(qkv, width, 3 * width)
        return Layers(
            norm1=block.norm1,
            qkv=qkv,
            heads=before["heads"],
            query=query,
            keys=keys,
            q_norm=block.q_norm,
            k_norm=block.k_norm,
            proj=expand(block.proj, before["proj"]),
            norm2=block.norm2,
            fc1=expand(block.fc1, before["fc1"]),
            fc2=expand(block.fc2, before["fc2"]),
            merge=block.merge,
            sized=block.sized,
        )

    def _placed(self, norm: Norm | None) -> Norm | None:
        return None if norm is None else norm.to(self.device)

    def _plain_linear(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight.to(self.device, self.plain), None if bias is None else bias.to(self.device, self.plain)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Codes are rounded in other places, and a difference in one block goes through all behind it: in FP8, on random weights
    of ViT-L, each way is 11 or 13 % off BF16's answer, and 10 % off the other. What is wrong is off by more than all of it."""
    return bool((one.float() - other.float()).norm() <= 0.3 * one.float().norm())


def _layer_norm(x: Tensor, norm: Norm | None) -> Tensor:
    """LayerNorm over the last axis, computed in float32."""
    if norm is None:
        return x
    return F.layer_norm(x.float(), x.shape[-1:], norm.weight, norm.bias, norm.eps).to(x.dtype)


def _first_rows(a: Quantized, images: int, count: int) -> Quantized:
    """The first `count` rows of each image."""
    values, scale = a
    first = values.view(images, -1, values.shape[1])[:, :count].reshape(images * count, -1).contiguous()
    if scale is None or scale.numel() == 1 < len(values):
        return first, scale
    return first, scale.view(images, -1)[:, :count].reshape(-1).contiguous()
