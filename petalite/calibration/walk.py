"""Through the model block by block: each layer is packed knowing the inputs that the quantized model will give it.

    found = calibrate(parent, plan, pixels, method="gptq")
    apply_plan(parent, replace(plan, activations=found.activations), out, calibrated=found.packed)

Two streams of activations go along, that of the full-precision model and that of the quantized one, whose blocks are
replaced on the way. Only one block and the two streams are on the device at a time.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from petalite import models
from petalite.calibration.clip import fit_scales
from petalite.calibration.gptq import gptq
from petalite.calibration.images import FEWEST
from petalite.calibration.ranges import InputRange
from petalite.calibration.reconstruct import reconstruct
from petalite.checkpoint import Checkpoint
from petalite.console import say, track
from petalite.data import Preprocess
from petalite.errors import PetaliteError, did_you_mean
from petalite.formats import Format, get_format
from petalite.formats.base import Packed, checked
from petalite.formats.grid import Scales, UniformGrid
from petalite.plan import POSITIONS, Plan, is_head
from petalite.stages import depth, embed, finish
from petalite.straight_through import RoundedLinear

#: How a weight is packed, from the quickest to the best.
METHODS = ("nearest", "clip", "gptq", "reconstruct")
STEPS = 400
_CHUNK = 32


@dataclass
class Calibrated:
    """What a calibration found: packed tensors by layer, the range of each layer's input, how long it took."""

    packed: dict[str, Packed] = field(default_factory=dict)
    activations: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0


def calibrate(
    parent: Checkpoint,
    plan: Plan,
    pixels: Tensor,
    *,
    method: str = "gptq",
    steps: int = STEPS,
    device: torch.device | None = None,
    seed: int = 0,
) -> Calibrated:
    """Pack the layers of `parent` as `plan` says, using unlabelled images.

    pixels: uint8 (images, 3, H, W), as the checkpoint's preprocessing gives them.
    method: `nearest` rounds to nearest; `clip` searches scales that weigh each input by its mean square; `gptq` feeds
    errors forward; `reconstruct` also trains each block to give the full-precision block's outputs (`steps` steps).
    Formats that another library packs (nf4, int8) are packed by it.
    Raises PetaliteError for too few images, images of another size, an unknown method, and inputs that are not finite.
    """
    check_method(method)
    _check_pixels(parent, pixels)
    started = time.monotonic()
    walk = _Walk(parent, plan, pixels, method, steps, device or torch.device("cpu"), seed)
    found = walk.run()
    found.seconds = time.monotonic() - started
    return found


def check_method(method: str) -> None:
    """Raise PetaliteError for a calibration that does not exist."""
    if method not in METHODS:
        raise PetaliteError(
            f"unknown calibration '{method}'{did_you_mean(method, METHODS)}; known: {', '.join(METHODS)}"
        )


def _check_pixels(parent: Checkpoint, pixels: Tensor) -> None:
    height, width = Preprocess.from_config(parent.config).size
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, height, width) or pixels.dtype != torch.uint8:
        raise PetaliteError(
            f"calibration images must be uint8 (N, 3, {height}, {width}) for this checkpoint, "
            f"got {str(pixels.dtype).removeprefix('torch.')} {tuple(pixels.shape)}"
        )
    if len(pixels) < FEWEST:
        raise PetaliteError(f"{len(pixels)} calibration images are too few; use at least {FEWEST}")


class _Walk:
    def __init__(
        self, parent: Checkpoint, plan: Plan, pixels: Tensor, method: str, steps: int, device: torch.device, seed: int
    ) -> None:
        self.plan, self.method, self.steps, self.device = plan, method, steps, device
        self.preprocess = Preprocess.from_config(parent.config)
        self.pixels = pixels
        self.generator = torch.Generator().manual_seed(seed)
        model: Any = parent.skeleton()
        model.load_state_dict(parent.plain_tensors(), assign=True)
        self.model = model.eval().requires_grad_(False)
        self.found = Calibrated()
        self.codes: dict[str, tuple[Tensor, Scales]] = {}  # of the block under way, for its reconstruction

    def run(self) -> Calibrated:
        with torch.no_grad():
            exact = self._embedded()
            self._patches()
            self._positions()
            rounded = self._embedded()
        for index in track(range(depth(self.model)), f"calibrate ({self.method})"):
            exact, rounded = self._block(index, exact, rounded)
        with torch.no_grad():
            self._head(rounded)
        return self.found

    def _embedded(self) -> Tensor:
        """What the first block takes, (images, tokens, width), on the CPU."""
        outer: Any = self.model
        blocks, outer.blocks = outer.blocks, nn.Sequential()
        outer.to(self.device)
        normalized = (self.preprocess.normalize(some.to(self.device)) for some in self.pixels.split(_CHUNK))
        tokens = torch.cat([embed(outer, some).cpu() for some in normalized])
        outer.to("cpu")
        outer.blocks = blocks
        return tokens

    def _patches(self) -> None:
        name = "patch_embed.proj"
        format = self._format(name)
        if format is None:
            return
        conv: Any = self.model.get_submodule(name)
        normalized = (self.preprocess.normalize(some.to(self.device)) for some in self.pixels.split(_CHUNK))
        moments = patch_moments(conv, normalized)
        conv.weight.data = self._rounded(name, format, conv.weight.data, moments).reshape(conv.weight.shape)

    def _positions(self) -> None:
        format = self._format(POSITIONS)
        if format is not None:
            outer: Any = self.model
            weight = self._rounded(POSITIONS, format, outer.pos_embed.data, None)
            outer.pos_embed.data = weight.reshape(outer.pos_embed.shape)

    def _block(self, index: int, exact: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
        """Pack block `index`; what both models hand to the next."""
        outer: Any = self.model
        plain = outer.blocks[index].to(self.device)
        block = copy.deepcopy(plain)
        names = [name for name in models.layers(self.model) if name.startswith(f"blocks.{index}.")]
        tuned: dict[str, RoundedLinear] = {}
        spans: dict[str, InputRange] = {}
        with torch.no_grad():
            targets = _through(plain, exact, self.device)
            for name in names:
                local = name.removeprefix(f"blocks.{index}.")
                linear: Any = block.get_submodule(local)
                spans[name], moments = input_moments(block, linear, rounded, self.device)
                format = self._format(name)
                if format is None:
                    continue
                linear.weight.data = self._rounded(name, format, linear.weight.data, moments)
                if self.method == "reconstruct" and isinstance(format.grid, UniformGrid):
                    codes, scales = self.codes[name]
                    tuned[name] = RoundedLinear(format.grid, codes, scales, linear.bias)
                    block.set_submodule(local, tuned[name])
        if tuned:
            before, after = reconstruct(
                block,
                list(tuned.values()),
                rounded,
                targets,
                steps=self.steps,
                device=self.device,
                generator=self.generator,
            )
            say(f"blocks.{index}: output error {before:.3g} -> {after:.3g}")
            self.found.packed |= {name: _on_cpu(layer.packed()) for name, layer in tuned.items()}
        with torch.no_grad():
            onward = _through(block, rounded, self.device)
        self.found.activations |= {name: span.best() for name, span in spans.items()}
        plain.to("cpu")
        self.codes.clear()
        return targets, onward

    def _head(self, rounded: Tensor) -> None:
        outer: Any = self.model
        outer.blocks = nn.Sequential()
        outer.to(self.device)
        for name in models.layers(self.model):
            if is_head(name):
                linear: Any = self.model.get_submodule(name)
                span, moments = input_moments(partial(finish, outer), linear, rounded, self.device)
                self.found.activations[name] = span.best()
                format = self._format(name)
                if format is not None:
                    linear.weight.data = self._rounded(name, format, linear.weight.data, moments)

    def _format(self, name: str) -> Format | None:
        """The packed format that the plan gives a layer; None for plain ones."""
        format = get_format(self.plan.layers.get(name, self.plan.rest))
        return None if format.plain else format

    def _rounded(self, name: str, format: Format, weight: Tensor, moments: Tensor | None) -> Tensor:
        """Pack one weight by the method, remember the packed tensors, and return what they unpack to."""
        try:
            matrix = checked(models.as_matrix(weight)).float().to(self.device)
            packed = self._packed(name, format, matrix, moments)
        except PetaliteError as error:
            raise PetaliteError(f"{name}: {error}") from error
        self.found.packed[name] = _on_cpu(packed)
        return format.unpack(packed).to(weight.device, weight.dtype)

    def _packed(self, name: str, format: Format, matrix: Tensor, moments: Tensor | None) -> Packed:
        grid = format.grid
        if grid is None:
            return format.pack(matrix.cpu())
        if self.method == "nearest":
            scales = grid.stored(grid.fit(matrix))
            codes = grid.encode(matrix, scales)
        elif self.method == "clip" or moments is None:
            scales = fit_scales(grid, matrix, None if moments is None else moments.diagonal())
            codes = grid.encode(matrix, scales)
        else:
            codes, scales = gptq(grid, matrix, moments)
        self.codes[name] = (codes, scales)
        return grid.pack(codes, scales)


def _on_cpu(packed: Mapping[str, Tensor]) -> Packed:
    return {name: tensor.cpu() for name, tensor in packed.items()}


def _through(block: Callable[[Tensor], Tensor], tokens: Tensor, device: torch.device) -> Tensor:
    """What a block makes of `tokens` (images, tokens, width), chunk by chunk, on the CPU."""
    return torch.cat([block(some.to(device)).cpu() for some in tokens.split(_CHUNK)])


def patch_moments(conv: nn.Module, normalized: Iterable[Tensor]) -> Tensor:
    """Second moments (3·k·k, 3·k·k) of the patches that a patch embedding takes from images (B, 3, H, W)."""
    size: Any = conv
    unfolded = (torch.nn.functional.unfold(x.float(), size.kernel_size, stride=size.stride) for x in normalized)
    return sum((torch.einsum("bip,bjp->ij", x, x) for x in unfolded), torch.zeros(()))  # x: B, 3·k·k, patches


def input_moments(
    block: Callable[[Tensor], Tensor], linear: nn.Module, tokens: Tensor, device: torch.device
) -> tuple[InputRange, Tensor]:
    """The range and the second moments Σ x xᵀ (in, in) of what `linear` takes while `block` runs."""
    span = InputRange()
    moments = torch.zeros((), device=device)
    for some in tokens.split(_CHUNK):
        x = _input_of(block, linear, some.to(device))
        if not torch.isfinite(x).all():
            raise PetaliteError(
                "the calibration images give activations that are NaN or infinite; check the checkpoint"
            )
        span.add(x)
        moments = moments + x.T @ x
    return span, moments


class _Seen(Exception):
    """Raised by a hook to end a pass as soon as the layer's input is known."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


@contextmanager
def _stopping_at(module: nn.Module) -> Iterator[None]:
    """End every pass in front of `module` with `_Seen`."""

    def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        raise _Seen(arguments[0].flatten(0, -2).float())

    handle = module.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def _input_of(block: Callable[[Tensor], Tensor], module: nn.Module, tokens: Tensor) -> Tensor:
    """What `module` is given while `block` runs on `tokens`, (rows, in)."""
    with _stopping_at(module):
        try:
            block(tokens)
        except _Seen as seen:
            return seen.x
    raise PetaliteError(f"a {type(module).__name__} of the model is never run; such models are not supported")
