"""From a plain checkpoint and a plan to a quantized checkpoint.

    quantize("runs/demo/checkpoints/fp32", "nf4", "runs/demo/checkpoints/nf4", keep=["blocks.11"])

Weights are packed from the tensors on disk, never from a live module: no forward pass comes between, which is what
makes bitsandbytes' checkpoints on a CPU wrong elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from petalite import models
from petalite.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from petalite.console import say, track
from petalite.errors import PetaliteError
from petalite.formats import Format, get_format
from petalite.formats.plain import cast
from petalite.plan import Plan

_TORCH_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def quantize(
    checkpoint: str | Path | Checkpoint,
    format: str,
    out: str | Path,
    *,
    keep: Iterable[str] = (),
    include_head: bool = False,
    notes: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write `checkpoint` in `format` to the folder `out` and return it.

    keep: layers, blocks (`blocks.21`), globs or `first_last` that stay in 16 bits. The head and the patch embedding
    stay so too; `include_head` quantizes the head as well.
    Raises PetaliteError for an unknown format, layers that do not exist, and a parent that is already quantized.
    """
    parent = checkpoint if isinstance(checkpoint, Checkpoint) else read_checkpoint(checkpoint)
    chosen = get_format(format)
    plan = Plan.uniform(
        chosen.name, rest=chosen.rest, layers=models.layers(parent.skeleton()), keep=keep, include_head=include_head
    )
    return apply_plan(parent, plan, out, notes=notes)


def apply_plan(
    parent: Checkpoint, plan: Plan, out: str | Path, *, notes: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Write `parent` with each layer in the format that `plan` gives it."""
    quantized = sorted({stored for stored in parent.plan.layers.values() if not get_format(stored).plain})
    if quantized:
        raise PetaliteError(f"{parent.path} is already quantized ({', '.join(quantized)}); start from its plain parent")
    tensors: dict[str, Tensor] = {}
    weights = {f"{name}.weight" for name in plan.layers}
    for name, tensor in parent.tensors.items():
        if name not in weights:
            tensors[name] = cast(tensor.float(), plan.rest)
    for name, stored in track(plan.layers.items(), f"pack {plan.format}", total=len(plan.layers)):
        weight = parent.tensors[f"{name}.weight"].float()
        packed = {"weight": cast(weight, stored)} if get_format(stored).plain else get_format(stored).pack(weight)
        tensors |= {f"{name}.{key}": value for key, value in packed.items()}
    config = {key: value for key, value in parent.config.items() if key not in ("quantization_config", "dtype")}
    config |= _transformers_entry(plan)
    written = write_checkpoint(Path(out), config, tensors, plan, notes)
    ratio = parent.disk_bytes / max(written.disk_bytes, 1)
    say(f"{plan.format}: {written.disk_bytes / 1e6:.1f} MB, {ratio:.2f}x smaller than {parent.path.name}")
    return written


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
