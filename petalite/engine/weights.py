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
from torch import Tensor, nn

from petalite.checkpoint import Checkpoint
from petalite.data.preprocess import Preprocess
from petalite.errors import PetaliteError
from petalite.merging import merged_counts

#: What uint8 pixels have subtracted, so that they are signed and small: exact in 8-bit integers and in any float.
PIXEL_MIDDLE = 128
_POOLINGS = ("token", "avg")


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
    return _unsupported(checkpoint.skeleton(), Preprocess.from_config(checkpoint.config))


def _unsupported(model: Any, preprocess: Preprocess) -> str | None:
    if model.global_pool not in _POOLINGS:
        return f"pooling by '{model.global_pool}'"
    if not isinstance(model.head, nn.Linear):
        return "a model without a head"
    if problem := _odd_patches(model.patch_embed):
        return problem
    if tuple(model.patch_embed.img_size) != preprocess.size:
        return "images of another size than the model's"
    norms = [model.norm_pre, model.norm, model.fc_norm]
    for block in model.blocks:
        attn, mlp = block.attn, block.mlp
        if getattr(attn, "gate", None) is not None:
            return "gated attention"
        if not isinstance(getattr(attn, "norm", nn.Identity()), nn.Identity):
            return "a norm behind attention"
        if not isinstance(getattr(mlp, "norm", nn.Identity()), nn.Identity):
            return "a norm inside the MLP"
        if type(mlp).__name__ != "Mlp":
            return f"an MLP of type {type(mlp).__name__}"
        if _gelu(mlp.act) is None:
            return f"the activation {type(mlp.act).__name__}"
        norms += [block.norm1, block.norm2, attn.q_norm, attn.k_norm]
    for norm in norms:
        if not isinstance(norm, (nn.LayerNorm, nn.Identity)):
            return f"a norm of type {type(norm).__name__}"
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
    model: Any = checkpoint.skeleton()
    preprocess = Preprocess.from_config(checkpoint.config)
    if problem := _unsupported(model, preprocess):
        raise PetaliteError(f"{checkpoint.path}: the fused engine does not compute {problem}; use --engine module")
    reader = _Reader(checkpoint.plain_tensors(), checkpoint.plan.activations)
    normalized = reader.linear("patch_embed.proj")
    normalized = Linear(normalized.name, normalized.weight.flatten(1), normalized.bias)
    tokens, positions = reader.embeddings(model)
    counts = merged_counts(checkpoint.plan.merge, len(positions)) or (0,) * len(model.blocks)
    first = next((index for index, count in enumerate(counts) if count), len(counts))
    distilled = hasattr(model, "head_dist")
    head = reader.head(distilled)
    high, wide = model.patch_embed.patch_size
    attention = model.blocks[0].attn
    shape = Shape(
        image_size=preprocess.size,
        patch=(high, wide),
        width=model.embed_dim,
        heads=attention.num_heads,
        head_dim=attention.head_dim,
        prefix=model.num_prefix_tokens,
        read=0 if model.global_pool == "avg" else 2 if distilled else 1,
        mean_from=0 if model.pool_include_prefix else model.num_prefix_tokens,
        gelu=_gelu(model.blocks[0].mlp.act) or "none",
        classes=len(head.weight),
    )
    return Network(
        shape=shape,
        pixels=_on_pixels(normalized, preprocess),
        normalized=normalized,
        tokens=tokens,
        positions=positions,
        norm_pre=reader.norm("norm_pre", model.norm_pre),
        blocks=tuple(
            reader.block(index, block, counts[index], index >= first) for index, block in enumerate(model.blocks)
        ),
        norm=reader.norm("norm", model.norm),
        fc_norm=None if distilled else reader.norm("fc_norm", model.fc_norm),
        head=head,
    )


class _Reader:
    def __init__(self, tensors: Mapping[str, Tensor], spans: Mapping[str, tuple[float, float]]) -> None:
        self.tensors, self.spans = tensors, spans

    def linear(self, name: str, scaled_by: str | None = None) -> Linear:
        """A layer, its rows multiplied by a layer scale where the model has one of that name."""
        weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        if scaled_by is not None and scaled_by in self.tensors:
            gamma = self.tensors[scaled_by].double()
            weight = (weight.double() * gamma[:, None]).float()
            bias = None if bias is None else (bias.double() * gamma).float()
        return Linear(name, weight, bias, self.spans.get(name))

    def norm(self, name: str, module: Any) -> Norm | None:
        if isinstance(module, nn.Identity):
            return None
        weight = self.tensors.get(f"{name}.weight", torch.ones(module.normalized_shape))
        return Norm(weight, self.tensors.get(f"{name}.bias", torch.zeros_like(weight)), float(module.eps))

    def needed_norm(self, name: str, module: Any) -> Norm:
        norm = self.norm(name, module)
        assert norm is not None, f"{name} is a LayerNorm: `unsupported` has seen to it"
        return norm

    def block(self, index: int, module: Any, merge: int, sized: bool) -> Block:
        at = f"blocks.{index}"
        return Block(
            norm1=self.needed_norm(f"{at}.norm1", module.norm1),
            qkv=self.linear(f"{at}.attn.qkv"),
            q_norm=self.norm(f"{at}.attn.q_norm", module.attn.q_norm),
            k_norm=self.norm(f"{at}.attn.k_norm", module.attn.k_norm),
            proj=self.linear(f"{at}.attn.proj", f"{at}.ls1.gamma"),
            norm2=self.needed_norm(f"{at}.norm2", module.norm2),
            fc1=self.linear(f"{at}.mlp.fc1"),
            fc2=self.linear(f"{at}.mlp.fc2", f"{at}.ls2.gamma"),
            merge=merge,
            sized=sized,
        )

    def embeddings(self, model: Any) -> tuple[Tensor, Tensor]:
        """The prefix tokens with their positions (prefix, width), and the positions of the patches."""
        last = "dist_token" if hasattr(model, "head_dist") else "reg_token"
        names = [name for name in ("cls_token", last) if name in self.tensors]
        parts = [self.tensors[name][0] for name in names]
        tokens = torch.cat(parts) if parts else torch.zeros(0, model.embed_dim)
        if model.pos_embed is None:
            return tokens, torch.zeros(model.patch_embed.num_patches, model.embed_dim)
        positions = self.tensors["pos_embed"][0]
        if model.no_embed_class:
            return tokens, positions
        return tokens + positions[: len(tokens)], positions[len(tokens) :]

    def head(self, distilled: bool) -> Linear:
        """The classifier; of a distilled model's two, whose answers are averaged, one for both tokens side by side."""
        head = self.linear("head")
        if not distilled:
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


def _odd_patches(embed: Any) -> str | None:
    if type(embed).__name__ != "PatchEmbed" or not isinstance(embed.proj, nn.Conv2d):
        return f"a patch embedding of type {type(embed).__name__}"
    conv = embed.proj
    if not isinstance(embed.norm, nn.Identity):
        return "a norm in the patch embedding"
    if conv.kernel_size != conv.stride or conv.padding != (0, 0) or conv.in_channels != 3:
        return "a patch embedding whose patches overlap"
    if not embed.flatten or embed.dynamic_img_pad:
        return "images of changing size"
    return None


def _gelu(activation: nn.Module) -> str | None:
    """Which GELU an activation is, `none` (exact) or `tanh`; None for any other."""
    name = type(activation).__name__
    if isinstance(activation, nn.GELU):
        return str(activation.approximate)
    return {"GELU": "none", "GELUTanh": "tanh"}.get(name)
