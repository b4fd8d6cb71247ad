"""The tables of a search, measured on this machine: damage, bytes, milliseconds, and what merging tokens does.

problem = estimate(parent, pixels, formats, objective="latency", merge=True, device=device)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from petalite import models
from petalite.budget.costs import interleaved, layer_times, packed_bytes
from petalite.budget.problem import Merge, Problem
from petalite.budget.sensitivity import divergence, sensitivities
from petalite.checkpoint import Checkpoint
from petalite.console import say, track
from petalite.device import capability_of, resolve_compute
from petalite.engine import engine_unavailable, load
from petalite.engine.choice import choose_compute
from petalite.formats import get_format
from petalite.merging import merged_counts
from petalite.plan import MIXED, POSITIONS, block_count, in_block

#: Shares of an image's patches that the blocks together may merge away, as many in each block.
MERGED_SHARES = (0.15, 0.3, 0.45, 0.6, 0.75)
#: Or few merges of many tokens, which often lose less for the same speed (docs/log.md): how much of what is left goes in
#: the blocks at these parts of the depth.
LARGE_AT = (1 / 3, 2 / 3, 5 / 6)
LARGE_SHARES = ((0.3, 0.3), (0.4, 0.4), (0.5, 0.5), (0.5, 0.5, 0.5))
#: Images that sensitivities are measured on: a divergence is resolved by few, and every layer and format costs a pass.
FEW = 96
_BATCH = {"latency": 1, "throughput": 32}
_CHUNK = 32


def candidates(parent: Checkpoint, formats: Sequence[str], rest: str) -> dict[str, tuple[str, ...]]:
    """The formats that each layer may take: all of them in the blocks; elsewhere `rest` and those with a grid.

    Formats that another library packs (nf4, int8) stay inside the blocks: they are made for Linears with many outputs.
    """
    inner = tuple(dict.fromkeys((*formats, rest)))
    outer = tuple(name for name in inner if name == rest or get_format(name).grid is not None)
    layers = [*parent.outline.layers, POSITIONS]
    return {name: inner if in_block(name) else outer for name in layers}


def estimate(
    parent: Checkpoint,
    pixels: Tensor,
    formats: Sequence[str],
    *,
    objective: str,
    merge: bool,
    device: torch.device,
) -> Problem:
    """Measure everything that the integer program needs.

    pixels: uint8 (images, 3, H, W), unlabelled. merge: also offer merged tokens (for latency and throughput).
    """
    rest = "bf16"
    choices = candidates(parent, formats, rest)
    tensors = parent.plain_tensors()
    weights = {name: models.as_matrix(tensors[models.weight_name(name)]) for name in choices}
    size = {name: {stored: float(_bytes(weights, name, stored)) for stored in names} for name, names in choices.items()}
    pixels = pixels[:FEW]
    damage = sensitivities(parent, pixels, choices, device)
    if objective == "size":
        none = Merge((), 0.0, 0.0, (1.0,) * block_count(choices))
        return Problem(damage, size, {}, (none,), objective, rest, rest)
    plain = resolve_compute("auto", "mixed", device)
    rows = _BATCH[objective] * _tokens(parent)
    inside = [name for name in choices if in_block(name)]
    kinds = list(dict.fromkeys(stored for name in inside for stored in choices[name]))
    shapes = {name: (weights[name].shape[0], weights[name].shape[1]) for name in inside}
    compute = plain
    if engine_unavailable(parent, device) is None:
        # the engine multiplies all layers in one precision, whatever each is stored in
        compute = choose_compute("auto", MIXED, capability_of(device), device.type).compute
        ms = {name: dict.fromkeys((*kinds, plain), 0.0) for name in inside}
    else:
        # formats with a grid are expanded to the same module when they are loaded, so one of them is timed for all
        timed = [name for name in kinds if get_format(name).grid is None and name != plain]
        times = layer_times(list(shapes.values()), [get_format(name) for name in (plain, *timed)], rows, device)
        ms = {
            name: {stored: times[shapes[name]].get(stored, times[shapes[name]][plain]) for stored in (*kinds, plain)}
            for name in inside
        }
    merges = _merges(parent, pixels, compute, _BATCH[objective], device, merge)
    return Problem(damage, size, ms, merges, objective, plain, rest)


def _merges(
    parent: Checkpoint, pixels: Tensor, compute: str, batch: int, device: torch.device, wanted: bool
) -> tuple[Merge, ...]:
    """No merging and, where `wanted`, some ways to merge, each with its damage and the whole model's time."""
    depth = parent.outline.depth
    patches = _tokens(parent) - 1
    counts: list[tuple[int, ...]] = [()]
    if wanted:
        counts += [(max(1, round(share * patches / depth)),) * depth for share in MERGED_SHARES]
        counts += [large for shares in LARGE_SHARES if (large := large_merges(shares, depth, patches)) not in counts]
    some = pixels[:1].repeat(batch, 1, 1, 1).to(device)
    runs, damages, logits = {}, {}, None
    for merge in track(counts, "merge"):
        variant = replace(parent, plan=replace(parent.plan, merge=merge))
        exact = load(variant, str(device), compute="fp32", engine="module")
        found = torch.cat([exact.logits(part) for part in pixels.split(_CHUNK)])
        logits = found if logits is None else logits
        damages[merge] = divergence(logits, found)
        runs[str(merge)] = partial(load(variant, str(device), compute=compute).forward, some)
    times = interleaved(runs, device)
    for merge in counts[1:]:
        say(f"merge {_words(merge)}: {times[str(())] / times[str(merge)]:.2f}x as fast, {damages[merge]:.3g} nats")
    return tuple(Merge(merge, damages[merge], times[str(merge)], _shares(merge, depth, patches)) for merge in counts)


def large_merges(shares: Sequence[float], depth: int, patches: int) -> tuple[int, ...]:
    """Tokens merged away in each block where each of `LARGE_AT` merges its share, at most half, of what reaches it.

    In a model so shallow that two of them fall into one block, that block merges once.
    """
    counts, left = [0] * depth, patches
    for at, share in zip(LARGE_AT, shares, strict=False):
        block = max(0, round(at * depth) - 1)
        if not counts[block]:
            counts[block] = int(min(share, 0.5) * left)
            left -= counts[block]
    return tuple(counts)


def _words(merge: tuple[int, ...]) -> str:
    if len(set(merge)) == 1:
        return f"{merge[0]} a block"
    return ", ".join(f"{count} in block {index}" for index, count in enumerate(merge) if count)


def _shares(merge: tuple[int, ...], depth: int, patches: int) -> tuple[float, ...]:
    """Tokens that each block's layers see, as a fraction of all; a block merges between its attention and its MLP."""
    left, shares = patches, []
    for count in merged_counts(merge, patches) if merge else (0,) * depth:
        shares.append((left - count / 2) / patches)
        left -= count
    return tuple(shares)


def _tokens(parent: Checkpoint) -> int:
    return parent.shapes[POSITIONS][1]


def _bytes(weights: dict[str, Tensor], name: str, stored: str) -> int:
    return packed_bytes(weights[name], get_format(stored))
