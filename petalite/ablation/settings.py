"""What an ablation tries: which layers stay in 16 bits in each setting, and how many block passes that takes.

    settings = settings_of(layers)
    [setting.kept for setting in settings]     # none, first_last, blocks.0, …, blocks.11, all
    passes(settings), from_scratch(settings)   # 102, 180

A setting says for each block which of its layers are kept. Two settings that say the same up to a block share what
that block is given, so the settings form a tree, and its nodes are the block passes that have to be computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from petalite.errors import PetaliteError
from petalite.plan import block_count, in_block, select

NONE, FIRST_LAST, ALL, ALL_BUT = "none", "first_last", "all", "all_but:"


@dataclass(frozen=True)
class Setting:
    """`kept` is its name in the CSV; `blocks[i]` are the layers of block i that stay in 16 bits."""

    kept: str
    blocks: tuple[frozenset[str], ...]

    @property
    def kind(self) -> str:
        """none, first_last, all, block, layer or all_but: those of a kind are judged together."""
        if self.kept in (NONE, FIRST_LAST, ALL):
            return self.kept
        if self.kept.startswith(ALL_BUT):
            return "all_but"
        return "block" if self.kept.count(".") == 1 else "layer"

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that stay in 16 bits, as `quantize(keep=...)` takes them."""
        return tuple(sorted(name for block in self.blocks for name in block))


def settings_of(layers: Sequence[str], patterns: Iterable[str] = (), reverse: bool = False) -> list[Setting]:
    """Nothing kept, the first and the last block, each block alone, all of them; each layer of `patterns` alone.

    reverse: also each block quantized alone, `all_but:blocks.N`.
    Raises PetaliteError for a pattern that names no layer inside a block.
    """
    inside = [name for name in layers if in_block(name)]
    names = [f"blocks.{index}" for index in range(block_count(inside))]
    single = select(patterns, layers)
    if outside := [name for name in single if not in_block(name)]:
        raise PetaliteError(f"'{outside[0]}' is in 16 bits in every setting; name layers inside the blocks")
    kept = {NONE: set[str](), FIRST_LAST: set(select([FIRST_LAST], inside))}
    kept |= {name: set(select([name], inside)) for name in names}
    kept[ALL] = set(inside)
    kept |= {name: {name} for name in single}
    if reverse:
        kept |= {f"{ALL_BUT}{name}": set(inside) - kept[name] for name in names}
    return [
        Setting(name, tuple(frozenset(layer for layer in chosen if layer.startswith(f"{block}.")) for block in names))
        for name, chosen in kept.items()
    ]


def passes(settings: Sequence[Setting]) -> int:
    """How many blocks have to be run for all of `settings`: the distinct beginnings among them."""
    return len({setting.blocks[:end] for setting in settings for end in range(1, len(setting.blocks) + 1)})


def from_scratch(settings: Sequence[Setting]) -> int:
    """How many blocks would be run if each setting were evaluated by itself."""
    return sum(len(setting.blocks) for setting in settings)
