"""Which layer is stored in which format: the plan, a small JSON-able value that travels in every checkpoint.

    plan = Plan.uniform("nf4", layers=linear_layers(config), keep=("blocks.21", "first_last"))
    plan.layers["blocks.21.mlp.fc1"]     # 'bf16': kept
    plan.layers["blocks.20.mlp.fc1"]     # 'nf4'

Layers are named as timm names them: `patch_embed.proj`, `blocks.N.attn.qkv|proj`, `blocks.N.mlp.fc1|fc2`, `head`.
`rest` is the format of every tensor that is no layer's weight: norms, embeddings, biases.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from petalite.errors import PetaliteError, did_you_mean

SCHEMA = 1
_BLOCK = re.compile(r"^blocks\.(\d+)\.")


@dataclass(frozen=True)
class Plan:
    """`format` names the whole, `layers` maps each layer to its own format, `rest` stores everything else."""

    format: str
    layers: Mapping[str, str] = field(default_factory=dict)
    rest: str = "fp32"

    @classmethod
    def uniform(
        cls, format: str, *, rest: str, layers: Sequence[str], keep: Iterable[str] = (), include_head: bool = False
    ) -> Plan:
        """`format` for every block's layers, `rest` for the layers that `keep` names, the patch embedding and the head.

        `keep` takes layers (`blocks.3.mlp.fc1`), blocks (`blocks.3`), globs (`blocks.*.attn.proj`) and `first_last`.
        Raises PetaliteError for a pattern that names no layer.
        """
        kept = set(select(keep, layers))
        chosen = {
            name: format if name not in kept and (in_block(name) or (include_head and is_head(name))) else rest
            for name in layers
        }
        return cls(format, chosen, rest)

    @property
    def kept(self) -> tuple[str, ...]:
        """Layers inside the blocks that are not stored in the plan's own format."""
        return tuple(name for name, stored in self.layers.items() if in_block(name) and stored != self.format)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {"schema": SCHEMA, "format": self.format, "rest": self.rest, "layers": dict(self.layers)}

    @classmethod
    def from_dict(cls, value: Any) -> Plan:
        """Read what `as_dict` wrote. Raises PetaliteError when a field is missing or of the wrong kind."""
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise PetaliteError(f'plan.json: expected an object with "schema": {SCHEMA}')
        format, layers, rest = value.get("format"), value.get("layers"), value.get("rest")
        if not isinstance(format, str) or not isinstance(rest, str) or not isinstance(layers, dict):
            raise PetaliteError("plan.json: 'format' and 'rest' must be names and 'layers' an object")
        if not all(isinstance(stored, str) for stored in layers.values()):
            raise PetaliteError("plan.json: every layer's format must be a name")
        return cls(format, dict(layers), rest)


def select(patterns: Iterable[str], layers: Sequence[str]) -> list[str]:
    """The layers that any of `patterns` names, in the order of `layers`. Raises PetaliteError for an idle pattern."""
    chosen: set[str] = set()
    for pattern in patterns:
        names = {name for name in layers if _matches(name, pattern, layers)}
        if not names:
            blocks = sorted({".".join(name.split(".")[:2]) for name in layers if in_block(name)})
            hint = did_you_mean(pattern, [*layers, *blocks, "first_last"])
            last = block_count(layers) - 1
            raise PetaliteError(
                f"'{pattern}' names no layer of this model{hint}; its blocks are blocks.0 to blocks.{last}"
            )
        chosen |= names
    return [name for name in layers if name in chosen]


def in_block(layer: str) -> bool:
    """Whether a layer belongs to a transformer block."""
    return _BLOCK.match(layer) is not None


def is_head(layer: str) -> bool:
    """Whether a layer is a classifier (`head`, or the second one of a distilled DeiT, `head_dist`)."""
    return layer in ("head", "head_dist")


def block_count(layers: Iterable[str]) -> int:
    """How many blocks the layers span."""
    return 1 + max((int(match.group(1)) for name in layers if (match := _BLOCK.match(name))), default=-1)


def _matches(name: str, pattern: str, layers: Sequence[str]) -> bool:
    if pattern == "first_last":
        return name.startswith(("blocks.0.", f"blocks.{block_count(layers) - 1}."))
    return name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)
