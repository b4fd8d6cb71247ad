"""Which layer is stored in which format: the plan, a small JSON-able value that travels in every checkpoint.

    plan = Plan.uniform("nf4", layers=linear_layers(config), keep=("blocks.21", "first_last"))
    plan.layers["blocks.21.mlp.fc1"]     # 'bf16': kept
    plan.layers["blocks.20.mlp.fc1"]     # 'nf4'

Layers are named as timm names them: `patch_embed.proj`, `blocks.N.attn.qkv|proj`, `blocks.N.mlp.fc1|fc2`, `head`.
`pos_embed`, the position embedding, may be named as well. `rest` is the format of every other tensor: norms, biases.
`merge` says how many tokens each block merges away, `activations` what a layer's input was seen to range over.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from petalite.errors import PetaliteError, did_you_mean

SCHEMA = 1
#: The name of a plan whose layers have no format in common.
MIXED = "mixed"
#: What a plan may name besides layers: the position embedding (1, tokens, width).
POSITIONS = "pos_embed"
_BLOCK = re.compile(r"^blocks\.(\d+)\.")


@dataclass(frozen=True)
class Plan:
    """`format` names the whole, `layers` maps each layer to its own format, `rest` stores everything else.

    merge: tokens merged away in each block, one number a block; empty for none.
    activations: (lowest, highest) value that each layer's input takes, where a calibration has measured it.
    """

    format: str
    layers: Mapping[str, str] = field(default_factory=dict)
    rest: str = "fp32"
    merge: tuple[int, ...] = ()
    activations: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def uniform(
        cls,
        format: str,
        *,
        rest: str,
        layers: Sequence[str],
        keep: Iterable[str] = (),
        include_head: bool = False,
        edges: str | None = None,
    ) -> Plan:
        """`format` for every block's layers, `rest` for the layers that `keep` names, the patch embedding and the head.

        edges: the format of the patch embedding, the position embedding and the head instead.

        `keep` takes layers (`blocks.3.mlp.fc1`), blocks (`blocks.3`), globs (`blocks.*.attn.proj`) and `first_last`.
        Raises PetaliteError for a pattern that names no layer.
        """
        kept = set(select(keep, layers))
        inside = {name for name in layers if in_block(name) or (include_head and is_head(name))}
        chosen = {name: rest if name in kept else format if name in inside else edges or rest for name in layers}
        return cls(format, chosen | ({POSITIONS: edges} if edges else {}), rest)

    @property
    def kept(self) -> tuple[str, ...]:
        """Layers inside the blocks that are not stored in the plan's own format; none where formats are mixed."""
        if self.format == MIXED:
            return ()
        return tuple(name for name, stored in self.layers.items() if in_block(name) and stored != self.format)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values; what it does not use is left out."""
        value: dict[str, Any] = {
            "schema": SCHEMA,
            "format": self.format,
            "rest": self.rest,
            "layers": dict(self.layers),
        }
        if any(self.merge):
            value["merge"] = list(self.merge)
        if self.activations:
            value["activations"] = {name: list(span) for name, span in self.activations.items()}
        return value

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
        return cls(format, dict(layers), rest, _merge(value.get("merge", [])), _spans(value.get("activations", {})))


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


def _merge(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(count) is int and count >= 0 for count in value):
        raise PetaliteError("plan.json: 'merge' must list a whole number of tokens for each block")
    return tuple(value)


def _spans(value: Any) -> dict[str, tuple[float, float]]:
    if not isinstance(value, dict):
        raise PetaliteError("plan.json: 'activations' must map a layer to its lowest and highest input")
    for name, span in value.items():
        if not isinstance(span, list) or len(span) != 2 or not all(type(end) in (int, float) for end in span):
            raise PetaliteError(f"plan.json: 'activations' of {name} must be its lowest and its highest input")
        if not -math.inf < span[0] <= span[1] < math.inf:
            raise PetaliteError(f"plan.json: the inputs of {name} cannot range from {span[0]} to {span[1]}")
    return {name: (float(low), float(high)) for name, (low, high) in value.items()}


def _matches(name: str, pattern: str, layers: Sequence[str]) -> bool:
    if pattern == "first_last":
        return name.startswith(("blocks.0.", f"blocks.{block_count(layers) - 1}."))
    return name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)
