"""How much each layer minds each format: what the outputs lose when that layer alone is packed.

    damage = sensitivities(parent, pixels, {"blocks.0.mlp.fc1": ("int4", "int3"), …})
    damage["blocks.0.mlp.fc1"]["int3"]       # mean KL divergence of the outputs from the parent's, in nats

Top-1 on a few hundred images cannot see one layer in 4 bits; the divergence of the outputs can, and needs no labels. The
activations in front of the changed block are computed once and kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petalite import models
from petalite.calibration.gptq import gptq
from petalite.calibration.walk import input_moments, patch_moments
from petalite.checkpoint import Checkpoint
from petalite.console import track
from petalite.data import Preprocess
from petalite.formats import Format, get_format
from petalite.plan import POSITIONS, in_block, is_head
from petalite.stages import depth, embed, finish, run_blocks

_CHUNK = 32


def sensitivities(
    parent: Checkpoint, pixels: Tensor, formats: Mapping[str, Sequence[str]], device: torch.device
) -> dict[str, dict[str, float]]:
    """The damage of each of a layer's `formats` while the rest of `parent` stays as it is, in nats.

    pixels: uint8 (images, 3, H, W), unlabelled. Weights are packed with error feedback (`gptq`) where the format allows.
    """
    probe = Probe(parent, pixels, device)
    damage: dict[str, dict[str, float]] = {name: {} for name in formats}
    with torch.no_grad():
        for name in (name for name in formats if not in_block(name) and not is_head(name)):
            for stored in formats[name]:
                damage[name][stored] = probe.of_embedding(name, get_format(stored))
        for index in track(range(depth(probe.model)), "sensitivity"):
            for name in (name for name in formats if name.startswith(f"blocks.{index}.")):
                damage[name] = probe.of_layer(name, index, [get_format(stored) for stored in formats[name]])
            probe.advance(index)
        for name in (name for name in formats if is_head(name)):
            damage[name] = probe.of_layer(name, depth(probe.model), [get_format(stored) for stored in formats[name]])
    return damage


def context_damages(parent: Checkpoint, built: Checkpoint, pixels: Tensor, device: torch.device) -> list[float]:
    """What each block's packing costs inside `built`, where all the others are packed too, in nats.

    The divergence from `parent` that is gone when that block alone is put back in full precision. Merged tokens are left
    aside: the blocks are compared on all of them.
    """
    exact, probe = Probe(parent, pixels, device), Probe(built, pixels, device)
    whole = divergence(exact.logits, probe.logits)
    blocks: Any = probe.model.get_submodule("blocks")
    originals: Any = exact.model.get_submodule("blocks")
    found = []
    with torch.no_grad():
        for index in track(range(depth(probe.model)), "damage in context"):
            packed, blocks[index] = blocks[index], originals[index]
            found.append(whole - divergence(exact.logits, probe.outputs(index)))
            blocks[index] = packed
            probe.advance(index)
    return found


class Probe:
    """A full-precision model, what it makes of the images so far, and its logits."""

    def __init__(self, parent: Checkpoint, pixels: Tensor, device: torch.device) -> None:
        model: Any = parent.skeleton()
        model.load_state_dict(parent.plain_tensors(), assign=True)
        self.model: nn.Module = model.eval().requires_grad_(False).to(device)
        self.device, self.pixels = device, pixels
        self.preprocess = Preprocess.from_config(parent.config)
        with torch.no_grad():
            self.tokens = self._embedded()
            self.logits = self.outputs(0)

    def of_embedding(self, name: str, format: Format) -> float:
        """The damage of packing the patch or the position embedding."""
        owner: Any = self.model if name == POSITIONS else self.model.get_submodule(name)
        kind = name if name == POSITIONS else "weight"
        weight = getattr(owner, kind)
        moments = None
        if name != POSITIONS:
            moments = patch_moments(owner, (self._normalized(some) for some in self.pixels.split(_CHUNK)))
        kept = weight.data
        weight.data = rounded(models.as_matrix(kept), format, moments).reshape(kept.shape)
        outputs = [finish(self.model, run_blocks(self.model, self._embed(some))) for some in self.pixels.split(_CHUNK)]
        damage = divergence(self.logits, torch.cat([part.float().cpu() for part in outputs]))
        weight.data = kept
        return damage

    def of_layer(self, name: str, index: int, formats: Sequence[Format]) -> dict[str, float]:
        """The damage of packing a layer of block `index` (or the head, behind the last block) in each format."""
        linear: Any = self.model.get_submodule(name)
        blocks: Any = self.model.get_submodule("blocks")
        runner = blocks[index] if index < len(blocks) else lambda tokens: finish(self.model, tokens)
        _, moments = input_moments(runner, linear, self.tokens, self.device)
        kept, damage = linear.weight.data, {}
        for format in formats:
            linear.weight.data = rounded(kept, format, moments)
            damage[format.name] = self._damage_from(index)
        linear.weight.data = kept
        return damage

    def advance(self, index: int) -> None:
        """Go on to what the block after `index` takes."""
        parts = [
            run_blocks(self.model, some.to(self.device), index, index + 1).cpu() for some in self.tokens.split(_CHUNK)
        ]
        self.tokens = torch.cat(parts)

    def outputs(self, index: int) -> Tensor:
        """Logits (images, classes) from what block `index` takes."""
        parts = [
            finish(self.model, run_blocks(self.model, some.to(self.device), index))
            for some in self.tokens.split(_CHUNK)
        ]
        return torch.cat([part.float().cpu() for part in parts])

    def _damage_from(self, index: int) -> float:
        return divergence(self.logits, self.outputs(index))

    def _embedded(self) -> Tensor:
        return torch.cat([self._embed(some).cpu() for some in self.pixels.split(_CHUNK)])

    def _embed(self, pixels: Tensor) -> Tensor:
        return embed(self.model, self._normalized(pixels))

    def _normalized(self, pixels: Tensor) -> Tensor:
        return self.preprocess.normalize(pixels.to(self.device))


def divergence(logits: Tensor, others: Tensor) -> float:
    """Mean KL divergence from softmax(logits) to softmax(others), both (images, classes), in nats."""
    return float(
        F.kl_div(others.double().log_softmax(1), logits.double().log_softmax(1), log_target=True, reduction="batchmean")
    )


def rounded(weight: Tensor, format: Format, moments: Tensor | None) -> Tensor:
    """A matrix as it comes back from a format; packed with error feedback where the format has a grid."""
    if format.grid is not None and moments is not None:
        return format.grid.decode(*gptq(format.grid, weight.float(), moments)).to(weight.dtype)
    return format.unpack(format.pack(weight.float().cpu())).to(weight.device, weight.dtype)
