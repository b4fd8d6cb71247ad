"""A checkpoint as an engine multiplies with it: every tensor in float32, expanded once, with what can be folded folded.

    network = read_network(checkpoint)
    network.blocks[0].qkv.weight        # float32 (3·heads·head_dim, width), whatever it was packed as
    network.pixels.weight               # (width, 3·ph·pw), to multiply uint8 pixels less 128 with

What is folded costs nothing in flight: a layer scale into the rows of the product before it, mean and standard
deviation of the preprocessing into the patch embedding, the position embedding's first rows into the prefix tokens, and
a distilled model's two heads into one that reads both tokens. All of it is computed in float64. Nothing here depends on
a device, so that every engine starts from the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from petalite.checkpoint import Checkpoint
from petalite.data.preprocess import Preprocess
from petalite.errors import PetaliteError
from petalite.merging import merged_counts
from petalite.outline import Outline

#: What uint8 pixels have subtracted, so that they are signed and small: exact in 8-bit integers and in any float.
PIXEL_MIDDLE = 128


@dataclass(frozen=True)
class Linear:
    """weight (out, in), bias (out,) or None; `span`: what the inputs were seen to range over, where calibrated."""

    name: str
    weight: Tensor
    bias: Tensor | None
    span: tuple[float, float] | None = None

    def rows(self, start: int, stop: int) -> Linear:
        """The outputs from `start` up to `stop` alone."""
        bias = None if self.bias is None else self.bias[start:stop]
        return Linear(self.name, self.weight[start:stop], bias, self.span)

    def to(self, device: torch.device) -> Linear:
        """The same on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        return Linear(self.name, self.weight.to(device), bias, self.span)


@dataclass(frozen=True)
class Norm:
    """A LayerNorm: weight and bias (width,), and what is added to the variance."""

    weight: Tensor
    bias: Tensor
    eps: float

    def to(self, device: torch.device) -> Norm:
        """The same on a device."""
        return Norm(self.weight.to(device), self.bias.to(device), self.eps)


@dataclass(frozen=True)
class Block:
    """One transformer block; layer scales are in `proj` and `fc2`.

    merge: how many tokens it merges away. sized: whether it and the blocks after it track how many each token stands for.
    """

    norm1: Norm
    qkv: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    proj: Linear
    norm2: Norm
    fc1: Linear
    fc2: Linear
    merge: int = 0
    sized: bool = False

    def to(self, device: torch.device) -> Block:
        """The same on a device."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: part.to(device) for name, part in parts.items() if isinstance(part, (Norm, Linear))
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Shape:
    """All of a network but its tensors.

    image_size, patch: (height, width) in pixels. width: channels of a token. prefix: class and register tokens.
    read: how many tokens the head reads, side by side (2 in a distilled model); 0 where it reads the mean of those from
    `mean_from` on. gelu: `none` (exact) or `tanh`.
    """

    image_size: tuple[int, int]
    patch: tuple[int, int]
    width: int
    heads: int
    head_dim: int
    prefix: int
    read: int
    mean_from: int
    gelu: str
    classes: int

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in a column and in a row; what is left of the image at its edges is not seen."""
        return self.image_size[0] // self.patch[0], self.image_size[1] // self.patch[1]

    @property
    def tokens(self) -> int:
        """Tokens that the first block takes."""
        return self.prefix + self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Network:
    """The whole model.

    pixels: the patch embedding for rows of uint8 pixels less 128, columns in the order c, y, x; normalized: the same
    for pixels that are already normalized. tokens: (prefix, width), with their positions. positions: (patches, width).
    """

    shape: Shape
    pixels: Linear
    normalized: Linear
    tokens: Tensor
    positions: Tensor
    norm_pre: Norm | None
    blocks: tuple[Block, ...]
    norm: Norm | None
    fc_norm: Norm | None
    head: Linear

    def linears(self) -> Iterator[Linear]:
        """Every product inside the blocks."""
        for block in self.blocks:
            yield from (block.qkv, block.proj, block.fc1, block.fc2)


def unsupported(checkpoint: Checkpoint) -> str | None:
    """What of this model the fused engines do not compute, in a few words; None when they compute all of it."""
    if problem := checkpoint.outline.unsupported:
        return problem
    if checkpoint.outline.image_size != Preprocess.from_config(checkpoint.config).size:
        return "images of another size than the model's"
    return None


def read_network(checkpoint: Checkpoint, device: torch.device | None = None) -> Network:
    """The network of a checkpoint of any format, in float32, expanded on `device` (the CPU when None), where it lies.

    Raises PetaliteError for a model with what `unsupported` names.
    """
    if device is None:
        return _read_network(checkpoint)
    moved = replace(checkpoint, tensors={name: tensor.to(device) for name, tensor in checkpoint.tensors.items()})
    with device:
        return _read_network(moved)


def _read_network(checkpoint: Checkpoint) -> Network:
    """Its tensors lie where those of the checkpoint do, which is torch's default device."""
    outline, preprocess = checkpoint.outline, Preprocess.from_config(checkpoint.config)
    if problem := unsupported(checkpoint):
        raise PetaliteError(f"{checkpoint.path}: the fused engine does not compute {problem}; use --engine module")
    reader = _Reader(checkpoint.plain_tensors(), checkpoint.plan.activations, outline)
    normalized = reader.linear("patch_embed.proj")
    normalized = Linear(normalized.name, normalized.weight.flatten(1), normalized.bias)
    tokens, positions = reader.embeddings()
    counts = merged_counts(checkpoint.plan.merge, len(positions)) or (0,) * outline.depth
    first = next((index for index, count in enumerate(counts) if count), len(counts))
    head = reader.head()
    high, wide = outline.patch
    shape = Shape(
        image_size=preprocess.size,
        patch=(high, wide),
        width=outline.width,
        heads=outline.heads,
        head_dim=outline.head_dim,
        prefix=outline.prefix,
        read=0 if outline.pooling == "avg" else 2 if outline.distilled else 1,
        mean_from=0 if outline.with_prefix else outline.prefix,
        gelu=outline.gelu or "none",
        classes=len(head.weight),
    )
    return Network(
        shape=shape,
        pixels=_on_pixels(normalized, preprocess),
        normalized=normalized,
        tokens=tokens,
        positions=positions,
        norm_pre=reader.norm("norm_pre"),
        blocks=tuple(reader.block(index, counts[index], index >= first) for index in range(outline.depth)),
        norm=reader.norm("norm"),
        fc_norm=None if outline.distilled else reader.norm("fc_norm"),
        head=head,
    )


class _Reader:
    def __init__(
        self, tensors: Mapping[str, Tensor], spans: Mapping[str, tuple[float, float]], outline: Outline
    ) -> None:
        self.tensors, self.spans, self.outline = tensors, spans, outline

    def linear(self, name: str, scaled_by: str | None = None) -> Linear:
        """A layer, its rows multiplied by a layer scale where the model has one of that name."""
        weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        if scaled_by is not None and scaled_by in self.tensors:
            gamma = self.tensors[scaled_by].double()
            weight = (weight.double() * gamma[:, None]).float()
            bias = None if bias is None else (bias.double() * gamma).float()
        return Linear(name, weight, bias, self.spans.get(name))

    def norm(self, name: str) -> Norm | None:
        if name not in self.outline.norms:
            return None
        channels, eps = self.outline.norms[name]
        weight = self.tensors.get(f"{name}.weight", torch.ones(channels))
        return Norm(weight, self.tensors.get(f"{name}.bias", torch.zeros_like(weight)), eps)

    def needed_norm(self, name: str) -> Norm:
        norm = self.norm(name)
        assert norm is not None, f"{name} is a LayerNorm: `unsupported` has seen to it"
        return norm

    def block(self, index: int, merge: int, sized: bool) -> Block:
        at = f"blocks.{index}"
        return Block(
            norm1=self.needed_norm(f"{at}.norm1"),
            qkv=self.linear(f"{at}.attn.qkv"),
            q_norm=self.norm(f"{at}.attn.q_norm"),
            k_norm=self.norm(f"{at}.attn.k_norm"),
            proj=self.linear(f"{at}.attn.proj", f"{at}.ls1.gamma"),
            norm2=self.needed_norm(f"{at}.norm2"),
            fc1=self.linear(f"{at}.mlp.fc1"),
            fc2=self.linear(f"{at}.mlp.fc2", f"{at}.ls2.gamma"),
            merge=merge,
            sized=sized,
        )

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """The prefix tokens with their positions (prefix, width), and the positions of the patches."""
        outline = self.outline
        last = "dist_token" if outline.distilled else "reg_token"
        names = [name for name in ("cls_token", last) if name in self.tensors]
        parts = [self.tensors[name][0] for name in names]
        tokens = torch.cat(parts) if parts else torch.zeros(0, outline.width)
        if "pos_embed" not in self.tensors:
            return tokens, torch.zeros(outline.patches, outline.width)
        positions = self.tensors["pos_embed"][0]
        if not outline.embeds_prefix:
            return tokens, positions
        return tokens + positions[: len(tokens)], positions[len(tokens) :]

    def head(self) -> Linear:
        """The classifier; of a distilled model's two, whose answers are averaged, one for both tokens side by side."""
        head = self.linear("head")
        if not self.outline.distilled:
            return head
        other = self.linear("head_dist")
        bias = None if head.bias is None or other.bias is None else (head.bias + other.bias) / 2
        return Linear("head", torch.cat([head.weight, other.weight], dim=1) / 2, bias)


def _on_pixels(normalized: Linear, preprocess: Preprocess) -> Linear:
    """The patch embedding with (p / 255 − mean) / std in it, for pixels less 128: W·x(p) + b = W′·(p − 128) + b′."""
    width = normalized.weight.shape[0]
    weight = normalized.weight.double().view(width, 3, -1)  # width, c, y·x
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (preprocess.mean, preprocess.std))
    middle = (PIXEL_MIDDLE / 255 - mean) / std
    shift = (weight * middle[None, :, None]).sum(dim=(1, 2))
    scaled = weight / (255 * std)[None, :, None]
    bias = shift if normalized.bias is None else shift + normalized.bias.double()
    return Linear(normalized.name, scaled.reshape(width, -1).float(), bias.float())
