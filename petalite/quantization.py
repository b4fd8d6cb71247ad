"""From a plain checkpoint and a plan to a quantized checkpoint.

    quantize("runs/demo/checkpoints/fp32", "nf4", "runs/demo/checkpoints/nf4", keep=["blocks.11"])

Weights are packed from the tensors on disk, never from a live module: no forward pass comes between, which is what
makes bitsandbytes' checkpoints on a CPU wrong elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from petalite import models
from petalite.calibration import calibrate, calibration_pixels, check_method
from petalite.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from petalite.console import say, track
from petalite.data import ImageData, Preprocess, open_data
from petalite.device import resolve_device
from petalite.errors import PetaliteError, did_you_mean
from petalite.formats import Format, get_format
from petalite.formats.base import Packed
from petalite.formats.plain import cast
from petalite.plan import POSITIONS, Plan

_TORCH_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def quantize(
    checkpoint: str | Path | Checkpoint,
    format: str,
    out: str | Path,
    *,
    keep: Iterable[str] = (),
    include_head: bool = False,
    edges: str | None = None,
    merge: Sequence[int] = (),
    calibration: str = "nearest",
    data: str | Path | ImageData | None = None,
    images: int = 256,
    device: str = "auto",
    seed: int = 0,
    notes: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write `checkpoint` in `format` to the folder `out` and return it.

    keep: layers, blocks (`blocks.21`), globs or `first_last` that stay in 16 bits. The head and the patch embedding
    stay so too; `include_head` quantizes the head as well. edges: the format of patch embedding, position embedding and
    head, `int8-channel` say. merge: tokens merged away in each block.
    calibration: `nearest`, or `clip`, `gptq`, `reconstruct` on `images` unlabelled training images of `data`, which also
    notes the range of each layer's input.
    Raises PetaliteError for an unknown format, layers that do not exist, and a parent that is already quantized.
    """
    parent = checkpoint if isinstance(checkpoint, Checkpoint) else read_checkpoint(checkpoint)
    chosen = get_format(format)
    plan = Plan.uniform(
        chosen.name,
        rest=chosen.rest,
        layers=parent.outline.layers,
        keep=keep,
        include_head=include_head,
        edges=get_format(edges).name if edges else None,
    )
    plan = replace(plan, merge=tuple(merge))
    if calibration == "nearest" and data is None:
        return apply_plan(parent, plan, out, notes=notes)
    return apply_calibrated(parent, plan, out, calibration, data, images=images, device=device, seed=seed, notes=notes)


def apply_calibrated(
    parent: Checkpoint,
    plan: Plan,
    out: str | Path,
    calibration: str,
    data: str | Path | ImageData | None,
    *,
    images: int = 256,
    device: str = "auto",
    seed: int = 0,
    notes: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write `parent` as `plan` says, its weights packed by a calibration on training images of `data`."""
    check_method(calibration)
    if data is None:
        raise PetaliteError(f"calibration '{calibration}' needs images: name a folder with --data")
    opened = data if isinstance(data, ImageData) else open_data(data, seed)
    plan = complete(plan, parent)
    pixels = calibration_pixels(opened, Preprocess.from_config(parent.config), images, seed)
    found = calibrate(parent, plan, pixels, method=calibration, device=resolve_device(device), seed=seed)
    say(f"calibration: {calibration}, {len(pixels)} images, {found.seconds:.0f} s")
    plan = replace(plan, activations=found.activations)
    described = {**(notes or {}), "calibration": f"{calibration}, {len(pixels)} images of {opened.name}"}
    return apply_plan(parent, plan, out, calibrated=found.packed, notes=described)


def apply_plan(
    parent: Checkpoint,
    plan: Plan,
    out: str | Path,
    *,
    calibrated: Mapping[str, Packed] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write `parent` with each layer in the format that `plan` gives it.

    calibrated: packed tensors of layers that were calibrated; the others are rounded to nearest.
    Raises PetaliteError for a quantized parent, and for a plan that names layers or formats that do not exist.
    """
    made = packed_checkpoint(parent, plan, calibrated=calibrated)
    written = write_checkpoint(Path(out), made.config, made.tensors, made.plan, notes)
    ratio = parent.disk_bytes / max(written.disk_bytes, 1)
    say(f"{plan.format}: {written.disk_bytes / 1e6:.2f} MB, {ratio:.2f}x smaller than {parent.path.name}")
    return written


def packed_checkpoint(parent: Checkpoint, plan: Plan, *, calibrated: Mapping[str, Packed] | None = None) -> Checkpoint:
    """What `apply_plan` writes, in memory alone; its path is still the parent's."""
    if parent.packed:
        used = ", ".join(sorted({parent.plan.layers[name] for name in parent.packed}))
        raise PetaliteError(f"{parent.path} is already quantized ({used}); start from its plain parent")
    plan = complete(plan, parent)
    weights = {models.weight_name(name): name for name in plan.layers}
    tensors = {name: cast(tensor.float(), plan.rest) for name, tensor in parent.tensors.items() if name not in weights}
    ready = calibrated or {}
    for key, name in track(weights.items(), f"pack {plan.format}", total=len(weights)):
        format, weight = get_format(plan.layers[name]), parent.tensors[key].float()
        if format.plain:
            tensors[key] = cast(weight, format.name)
        else:
            packed = ready[name] if name in ready else _pack(format, name, weight)
            tensors |= {f"{name}.{part}": value for part, value in packed.items()}
    config = {key: value for key, value in parent.config.items() if key not in ("quantization_config", "dtype")}
    config |= _transformers_entry(plan)
    return Checkpoint(parent.path, config, plan, tensors)


def complete(plan: Plan, parent: Checkpoint) -> Plan:
    """`plan` with every layer of `parent` in it, those that it leaves out in its `rest` format.

    Raises PetaliteError for layers, formats and a merging that the model does not have.
    """
    known = parent.outline.layers
    for name, stored in plan.layers.items():
        if name not in (*known, POSITIONS):
            raise PetaliteError(
                f"the plan names a layer '{name}' that the model does not have{did_you_mean(name, known)}"
            )
        get_format(stored)
    if not get_format(plan.rest).plain:
        raise PetaliteError(f"the plan's rest must be a plain format (fp32, fp16, bf16), not {plan.rest}")
    if problems := parent.outline.merge_problems(plan):
        raise PetaliteError(problems[0])
    absent = {name: plan.rest for name in known if name not in plan.layers}
    return replace(plan, layers={**absent, **plan.layers})


def _pack(format: Format, name: str, weight: Tensor) -> Packed:
    try:
        return format.pack(models.as_matrix(weight))
    except PetaliteError as error:
        raise PetaliteError(f"{name}: {error}") from error


def _transformers_entry(plan: Plan) -> dict[str, Any]:
    """What lets `transformers` load the folder: only where one format it knows is used."""
    used: set[str] = {stored for stored in plan.layers.values() if not get_format(stored).plain}
    if len(used) != 1:
        return {}
    format: Format = get_format(used.pop())
    if format.transformers is None:
        return {}
    skipped = [name for name, stored in plan.layers.items() if stored != format.name]
    return {
        # transformers runs the tensors that are not quantized as they are stored, so it has to compute in that precision
        "dtype": _TORCH_NAMES[plan.rest],
        "quantization_config": {**format.transformers, "llm_int8_skip_modules": skipped},
    }
