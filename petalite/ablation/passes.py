"""The forward passes of an ablation: each block is run once for all the settings that agree up to there.

    classifier, blocks = load_blocks(parent, "nf4")
    for setting, logits in all_logits(classifier, blocks, settings, pixels): ...

Only what lies on the way to the setting at hand is held: at most one hidden state a block, of one batch.
Two modules of each block are in memory, the quantized and the plain one; a block of which single layers are kept
borrows its layers from both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from petalite import stages
from petalite.ablation.settings import Setting
from petalite.checkpoint import Checkpoint
from petalite.engine import Classifier, load
from petalite.formats import get_format
from petalite.formats.plain import DTYPES
from petalite.plan import Plan
from petalite.quantization import packed_checkpoint


class Blocks:
    """Every version of every block, by its index and the layers kept in it; `calls` counts the passes."""

    def __init__(self, quantized: nn.Module, plain: nn.Module, layers: Sequence[str]) -> None:
        self.quantized, self.plain = quantized, plain
        self.layers = frozenset(layers)
        self.calls = 0
        self._made: dict[tuple[int, frozenset[str]], nn.Module] = {}

    def run(self, index: int, kept: frozenset[str], tokens: Tensor) -> Tensor:
        """What block `index` returns for `tokens`, with the layers `kept` plain and the others quantized."""
        self.calls += 1
        if (index, kept) not in self._made:
            self._made[index, kept] = self._make(index, kept)
        returned: Tensor = self._made[index, kept](tokens)
        return returned

    def _make(self, index: int, kept: frozenset[str]) -> nn.Module:
        prefix = f"blocks.{index}."
        if kept == {name for name in self.layers if name.startswith(prefix)}:
            return self.plain.get_submodule(prefix[:-1])
        block = self.quantized.get_submodule(prefix[:-1])
        for name in sorted(kept):
            block = _with(block, name.removeprefix(prefix), self.plain.get_submodule(name))
        return block


def load_blocks(
    parent: Checkpoint,
    format: str,
    device: str = "auto",
    attention: str = "auto",
    compute: str = "auto",
    threads: int | None = None,
) -> tuple[Classifier, Blocks]:
    """The parent with everything in `format`, and the blocks to exchange: as `quantize` and `load` would make them."""
    layers, rest = parent.outline.layers, get_format(format).rest
    plans = (replace(Plan.uniform(name, rest=rest, layers=layers), merge=parent.plan.merge) for name in (format, rest))
    quantized, plain = (packed_checkpoint(parent, plan) for plan in plans)
    # blocks are exchanged one by one, which only modules allow
    classifier = load(quantized, device, attention, compute, threads, engine="module")
    kept = load(plain, device, attention, classifier.info.compute, threads, engine="module")
    return classifier, Blocks(classifier.model, kept.model, layers)


@torch.inference_mode()
def all_logits(
    classifier: Classifier, blocks: Blocks, settings: Sequence[Setting], batch: Tensor
) -> Iterator[tuple[Setting, Tensor]]:
    """(setting, logits (B, classes) on the device) of each setting, in the order of their tree; batch: uint8 pixels."""
    yield from _below(classifier.model, blocks, settings, _embedded(classifier, batch), 0)


@torch.inference_mode()
def logits_from_scratch(classifier: Classifier, blocks: Blocks, setting: Setting, batch: Tensor) -> Tensor:
    """Logits (B, classes) of one setting by itself: what sharing is held against."""
    tokens = _embedded(classifier, batch)
    for index, kept in enumerate(setting.blocks):
        tokens = blocks.run(index, kept, tokens)
    return stages.finish(classifier.model, tokens)


def _embedded(classifier: Classifier, batch: Tensor) -> Tensor:
    pixels = classifier.preprocess.normalize(batch.to(classifier.device, non_blocking=True))
    return stages.embed(classifier.model, pixels.to(DTYPES[classifier.info.compute]))


def _below(
    model: nn.Module, blocks: Blocks, settings: Sequence[Setting], tokens: Tensor, index: int
) -> Iterator[tuple[Setting, Tensor]]:
    """The settings that agree on every block before `index`, whose output is `tokens`."""
    if index == len(settings[0].blocks):
        logits = stages.finish(model, tokens)
        yield from ((setting, logits) for setting in settings)
        return
    groups: dict[frozenset[str], list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting.blocks[index], []).append(setting)
    for kept, agreeing in groups.items():
        yield from _below(model, blocks, agreeing, blocks.run(index, kept, tokens), index + 1)


def _with(module: nn.Module, path: str, layer: nn.Module) -> nn.Module:
    """`module` with another layer at `path`; everything else is shared, nothing is changed."""
    made = copy.copy(module)
    made.__dict__["_modules"] = dict(module._modules)
    name, _, rest = path.partition(".")
    made._modules[name] = _with(module.get_submodule(name), rest, layer) if rest else layer
    return made
