"""What checks and engines ask of a model: timm's model says it once, then it is kept on disk.

    outline = outline_of(checkpoint.config)
    outline.shapes["blocks.0.attn.qkv.weight"]      # (3072, 1024)
    outline.heads, outline.layers                   # 16, ('patch_embed.proj', 'blocks.0.attn.qkv', …)

To build a model even without memory, timm has to be imported, and with it most of PyTorch's compiler: one to six seconds,
the larger part of a start. What comes of it depends on the configuration and on timm's version alone, so it is kept in
`outlines/` of the cache folder (`$PETALITE_CACHE`, else ~/.cache/petalite), named by a hash of both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from petalite import __version__, models
from petalite.errors import PetaliteError
from petalite.files import cache_dir, read_json, write_json
from petalite.merging import merge_problems
from petalite.plan import Plan

#: What of a configuration decides which model is built.
_DECIDING = ("architecture", "num_classes", "model_args", "global_pool")
_POOLINGS = ("token", "avg")


@dataclass(frozen=True)
class Outline:
    """A timm VisionTransformer of plain blocks.

    shapes: of every tensor of the state dict. layers: what a plan may name. image_size, patch: (height, width) in pixels.
    pooling: timm's `global_pool`. prefix: class and register tokens. with_prefix: whether a mean is taken over them too.
    embeds_prefix: whether they have positions. gelu: `none` (exact) or `tanh`; None for another activation.
    norms: channels and eps of each LayerNorm. unsupported: what of it the fused engines do not compute, in a few words.
    """

    shapes: Mapping[str, tuple[int, ...]]
    layers: tuple[str, ...]
    parameters: int
    depth: int
    width: int
    heads: int
    head_dim: int
    image_size: tuple[int, ...]
    patch: tuple[int, ...]
    patches: int
    prefix: int
    pooling: str
    with_prefix: bool
    embeds_prefix: bool
    distilled: bool
    gelu: str | None
    norms: Mapping[str, tuple[int, float]]
    unsupported: str | None

    @classmethod
    def of(cls, model: Any) -> Outline:
        """Of a model as `models.build` makes it."""
        attention = model.blocks[0].attn
        norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
        return cls(
            shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
            layers=tuple(models.layers(model)),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            depth=len(model.blocks),
            width=model.embed_dim,
            heads=attention.num_heads,
            head_dim=attention.head_dim,
            image_size=tuple(model.patch_embed.img_size or ()),
            patch=tuple(model.patch_embed.patch_size),
            patches=model.patch_embed.num_patches,
            prefix=model.num_prefix_tokens,
            pooling=model.global_pool,
            with_prefix=bool(model.pool_include_prefix),
            embeds_prefix=not model.no_embed_class,
            distilled=hasattr(model, "head_dist"),
            gelu=_gelu(getattr(model.blocks[0].mlp, "act", None)),
            norms={name: (module.normalized_shape[0], float(module.eps)) for name, module in norms.items()},
            unsupported=_unsupported(model),
        )

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Outline:
        """What `as_dict` has made. Raises KeyError, TypeError or ValueError for anything else."""
        if set(kept) != {field.name for field in fields(cls)}:
            raise ValueError("fields are missing or unknown")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()
        }
        values["shapes"] = {name: tuple(map(int, shape)) for name, shape in kept["shapes"].items()}
        values["norms"] = {name: (int(channels), float(eps)) for name, (channels, eps) in kept["norms"].items()}
        return cls(**values)

    def merge_problems(self, plan: Plan) -> list[str]:
        """Why such a model cannot merge tokens as `plan` says; empty when it can."""
        return merge_problems(plan, self.depth, self.pooling, self.patches)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def outline_of(config: models.Config) -> Outline:
    """Of the model that `config` names. Raises PetaliteError as `models.build` does."""
    path = _path(config)
    if path is not None and (kept := _read(path)) is not None:
        return kept
    outline = Outline.of(models.build(config))
    if path is not None:
        with suppress(PetaliteError, OSError):  # a disk that is full only costs the next start
            write_json(path, outline.as_dict())
    return outline


def _path(config: models.Config) -> Path | None:
    """Where an outline is kept; None where a version or the configuration cannot be told."""
    try:
        facts = [{name: config.get(name) for name in _DECIDING}, metadata.version("timm"), __version__]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    except (metadata.PackageNotFoundError, TypeError, ValueError, RecursionError):
        return None
    return cache_dir() / "outlines" / f"{digest[:32]}.json"


def _read(path: Path) -> Outline | None:
    """None where there is none, or it is damaged: it is made again."""
    if not path.exists():
        return None
    try:
        return Outline.from_dict(read_json(path))
    except (PetaliteError, OSError, AttributeError, KeyError, TypeError, ValueError):
        return None


def _unsupported(model: Any) -> str | None:
    if model.global_pool not in _POOLINGS:
        return f"pooling by '{model.global_pool}'"
    if not isinstance(model.head, nn.Linear):
        return "a model without a head"
    if problem := _odd_patches(model.patch_embed):
        return problem
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


def _gelu(activation: nn.Module | None) -> str | None:
    """Which GELU an activation is, `none` (exact) or `tanh`; None for any other."""
    name = type(activation).__name__
    if isinstance(activation, nn.GELU):
        return str(activation.approximate)
    return {"GELU": "none", "GELUTanh": "tanh"}.get(name)
