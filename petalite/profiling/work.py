"""What the layers of a Vision Transformer compute: operations and bytes, from its shapes alone.

    work(checkpoint, batch=8, compute="int8", engine="openvino")["blocks.0.mlp.fc1"]    # Work(flops=…, bytes=…)

Bytes are those that have to move at the least: weights as they are multiplied, what goes in and what comes out, once
each. An achieved rate below a ceiling may mean that more moved; one in a cache may lie above the memory's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from petalite.checkpoint import Checkpoint
from petalite.measure.ceilings import product_flops
from petalite.merging import merged_counts

_CODES = ("int8", "fp8")
_ATTENTION_PARTS = ("q", "kv")


@dataclass(frozen=True)
class Work:
    """Operations, and bytes that have to move."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


def work(
    checkpoint: Checkpoint, batch: int, compute: str, engine: str, plain_bytes: int | None = None
) -> dict[str, Work]:
    """The work of each layer, by timm's names, `blocks.N.attn` being softmax(Q Kᵀ) V and `blocks.N.normN` the norms.

    compute: the precision of the blocks' products. plain_bytes: of a number between them (by `compute` when None).
    engine: those other than `module` compute, in the last block, only what the head reads.
    """
    model: Any = checkpoint.skeleton()
    plain = plain_bytes or (4 if compute == "fp32" else 2)
    coded = 1 if compute in _CODES else plain
    prefix, patches = model.num_prefix_tokens, model.patch_embed.num_patches
    counts = merged_counts(checkpoint.plan.merge, patches) or (0,) * len(model.blocks)
    reads = 2 if hasattr(model, "head_dist") else 1
    shortened = engine != "module" and model.global_pool == "token"
    conv = model.patch_embed.proj
    found = {"patch_embed.proj": _product(batch * patches, conv.weight[0].numel(), len(conv.weight), plain, plain)}
    tokens = prefix + patches
    for number, block in enumerate(model.blocks):
        name, last = f"blocks.{number}", shortened and number == len(model.blocks) - 1
        rows, after = batch * tokens, batch * (tokens - counts[number])
        read = batch * reads if last else rows
        after = batch * reads if last else after
        width = model.embed_dim
        inner = block.attn.num_heads * block.attn.head_dim
        if last:
            found[f"{name}.attn.q"] = _product(read, width, inner, coded, plain)
            found[f"{name}.attn.kv"] = _product(rows, width, 2 * inner, coded, plain)
        else:
            found[f"{name}.attn.qkv"] = _product(rows, width, 3 * inner, coded, plain)
        found[f"{name}.attn"] = Work(
            2 * product_flops(read, inner, tokens), plain * (2 * rows * inner + 2 * read * inner)
        )
        found[f"{name}.attn.proj"] = _product(read, inner, width, coded, plain)
        found[f"{name}.norm1"] = _pass(rows, width, plain, coded)
        found[f"{name}.norm2"] = _pass(after, width, plain, coded)
        for layer in ("fc1", "fc2"):
            linear = getattr(block.mlp, layer, None)
            if isinstance(linear, nn.Linear):
                found[f"{name}.mlp.{layer}"] = _product(after, linear.in_features, linear.out_features, coded, plain)
        tokens -= counts[number]
    if isinstance(model.head, nn.Linear):
        found["head"] = _product(batch, model.head.in_features, model.head.out_features, plain, plain)
    return found


def of_layer(known: dict[str, Work], layer: str) -> Work | None:
    """The work of a layer as an account names it: queries, keys and values may be together there and apart here, and all
    `blocks` be one kernel."""
    if layer in known:
        return known[layer]
    if layer == "blocks":
        return sum((done for name, done in known.items() if name.startswith("blocks.")), Work(0.0, 0.0))
    if layer.endswith("attn.qkv"):
        parts = [known.get(f"{layer.removesuffix('qkv')}{part}") for part in _ATTENTION_PARTS]
        if all(parts):
            return sum((part for part in parts if part), Work(0.0, 0.0))
    return None


def _product(rows: int, inputs: int, outputs: int, coded: int, plain: int) -> Work:
    moved = coded * (rows * inputs + inputs * outputs) + plain * rows * outputs
    return Work(product_flops(rows, inputs, outputs), float(moved))


def _pass(rows: int, width: int, plain: int, coded: int) -> Work:
    """A normalization: some operations a number, which is read once and written as the next product takes it."""
    return Work(8.0 * rows * width, float(rows * width * (plain + coded)))
