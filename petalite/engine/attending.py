"""Which attention runs in the GPU engine, and its output as the next product takes it.

    attending = Attending(shape, products, "auto", proj, step)      # a short trial, once for each kind of GPU
    attending.name                                                  # 'petalite', 'cudnn', …
    rows = attending(qkv, B, proj)                                  # (B·N, H·D), quantized where proj is

`petalite` is the engine's own kernel (kernels/attention.py); the others are those of `petalite.attention`. The own kernel
also takes queries, keys and values in 8 bits, as the product ahead can write them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from petalite.attention import BACKENDS, resolve_attention
from petalite.engine.expanded import Expanded
from petalite.engine.kernels import Quantized, shared_bytes
from petalite.engine.products import Products, shape_class
from petalite.engine.weights import Shape
from petalite.errors import PetaliteError, did_you_mean

#: The name of the engine's own attention kernel, besides those of `petalite.attention`.
OWN_ATTENTION = "petalite"
#: What the own kernel takes: heads of these sizes, and as many tokens; codes of heads that this divides.
_HEAD_DIMS, _MOST_TOKENS, _CODED = range(16, 129, 16), 1024, 32
_TRIAL_BATCH = 32
#: What others of the list of backends are for, a GPU does not need.
_ON_GPUS = ("sdpa", "cudnn", "fa2", "efficient")


class Attending:
    """The attention of one engine.

    attention: `petalite`, a backend of `petalite.attention`, or `auto`: the quickest of them here. proj: a layer behind
    it, step: what a step of codes of queries, keys and values would be worth there, where those are to be had: for the
    trial. Raises PetaliteError for an attention that cannot run here.
    """

    def __init__(
        self, shape: Shape, products: Products, attention: str, proj: Expanded, step: Tensor | None = None
    ) -> None:
        self.shape, self.products, self.choices, self.device = shape, products, products.choices, products.device
        self.name = self._resolved(attention, proj, step)

    @property
    def takes_codes(self) -> bool:
        """Whether queries, keys and values may come in 8-bit floats."""
        return self.name == OWN_ATTENTION and self.shape.head_dim % _CODED == 0

    def __call__(self, qkv: Quantized, B: int, proj: Expanded, sizes: Tensor | None = None) -> Quantized:
        """Rows (B·N, H·D) as `proj` takes them, of qkv (B·N, 3·H·D); sizes: float32 (B, N), of tokens that were merged."""
        return self._by(self.name, qkv, B, proj, sizes)

    def _by(self, name: str, qkv: Quantized, B: int, proj: Expanded, sizes: Tensor | None = None) -> Quantized:
        values, step = qkv
        whole = values.view(B, -1, values.shape[-1])
        if name != OWN_ATTENTION:
            query, key, value = heads_of(whole, self.shape.heads)
            bias = None if sizes is None else sizes.log()[:, None, None]
            out = BACKENDS[name].attend(query, key, value, bias).transpose(1, 2)  # B, N, H, D
            return self.products.taken(out.reshape(len(values), -1), proj)
        from petalite.engine.kernels.attention import configs

        N, shape, memory = whole.shape[1], self.shape, shared_bytes(self.device)
        found = {str(config): config for config in configs(shape_class(B), N, shape.heads, shape.head_dim, memory)}
        if sizes is not None or self.device.type == "cpu":
            # merged tokens differ in number from block to block: trials for all would take longer than they gain
            return self._own(whole, step, proj, sizes, next(iter(found.values())))

        def ways() -> dict[str, Callable[[], Quantized]]:
            return {name: partial(self._own, whole, step, proj, None, config) for name, config in found.items()}

        name = self.choices.choose(f"{OWN_ATTENTION} {self._key(B, N, proj, step is not None)}", ways, _alike)
        return self._own(whole, step, proj, None, found[name])

    def _own(self, qkv: Tensor, step: Tensor | None, proj: Expanded, sizes: Tensor | None, config: Any) -> Quantized:
        from petalite.engine.kernels.attention import attention

        codes = self.products.codes
        if codes is None or proj.step is None:
            plain = self.products.plain
            values = attention(qkv, self.shape.heads, step=step, dtype=plain, sizes=sizes, config=config)
            return self.products.taken(values, proj)
        rows = attention(qkv, self.shape.heads, step=step, dtype=codes, scale=proj.step, sizes=sizes, config=config)
        return rows, proj.step

    def _key(self, B: int, N: int, proj: Expanded, coded: bool = False) -> str:
        """`attention fp8 bfloat16 static 32x197x16x64`: what it reads and writes, then images, tokens, heads, channels."""
        written = "plain" if self.products.codes is None else "per token" if proj.step is None else "static"
        read = "codes" if coded else str(self.products.plain).removeprefix("torch.")
        sizes = f"{shape_class(B)}x{N}x{self.shape.heads}x{self.shape.head_dim}"
        return f"attention {self.products.compute} {read} {written} {sizes}"

    def _resolved(self, name: str, proj: Expanded, step: Tensor | None) -> str:
        """The attention that runs."""
        refused = self._own_refuses()
        if name == OWN_ATTENTION and refused:
            raise PetaliteError(f"attention {OWN_ATTENTION} takes {refused}; use --attention auto")
        plain = self.products.plain
        if name not in ("auto", OWN_ATTENTION):
            if name not in BACKENDS:
                known = (OWN_ATTENTION, *BACKENDS)
                raise PetaliteError(
                    f"unknown attention '{name}'{did_you_mean(name, known)}; known: auto, {', '.join(known)}"
                )
            resolve_attention(name, self.device, plain)
            return name
        if name == OWN_ATTENTION or (not refused and self.device.type == "cpu"):
            return OWN_ATTENTION
        names = [other.name for other in BACKENDS.values() if other.unavailable(self.device, plain) is None]
        names = [other for other in _ON_GPUS if other in names]
        # in 32 bits exactness comes before speed
        if self.products.compute == "fp32" or self.device.type == "cpu":
            return "sdpa"
        return self._quickest(names if refused else [*names, OWN_ATTENTION], proj, step)

    def _own_refuses(self) -> str | None:
        if self.shape.head_dim not in _HEAD_DIMS:
            return f"heads of 16 to 128 channels, a multiple of 16, not {self.shape.head_dim}"
        if self.shape.tokens > _MOST_TOKENS:
            return f"up to {_MOST_TOKENS} tokens, not {self.shape.tokens}"
        return None

    def _quickest(self, names: list[str], proj: Expanded, step: Tensor | None) -> str:
        """The quickest attention for batches of 32 images, quantization included, each with the input that it takes."""
        B, N, width = _TRIAL_BATCH, self.shape.tokens, 3 * self.shape.heads * self.shape.head_dim
        generator = torch.Generator(self.device).manual_seed(0)
        qkv = torch.randn(B * N, width, generator=generator, device=self.device).to(self.products.plain)
        coded = step is not None and self.shape.head_dim % _CODED == 0
        own = self.products.rounded(qkv, step) if coded and step is not None else (qkv, None)

        def ways() -> dict[str, Callable[[], Quantized]]:
            return {
                name: partial(self._by, name, own if name == OWN_ATTENTION else (qkv, None), B, proj) for name in names
            }

        with torch.inference_mode():
            return self.choices.choose(self._key(B, N, proj, coded), ways, _alike)


def heads_of(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, 3·H·D) -> query, key, value, (B, H, N, D) each, not copied."""
    B, N, _ = qkv.shape
    query, key, value = qkv.view(B, N, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return query, key, value


def _alike(one: Quantized, other: Quantized) -> bool:
    def plain(a: Quantized) -> Tensor:
        values, scale = a
        return values.float() if scale is None else values.float() * scale.view(-1, 1)

    first, second = plain(one), plain(other)
    return bool((first - second).norm() <= 0.1 * first.norm())
