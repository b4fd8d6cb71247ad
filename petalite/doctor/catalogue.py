"""`petalite ls`: what there is of a kind, what each is, and whether it runs here.

listing("formats", "cpu")      # [{"name": "nf4", "about": "4-bit NormalFloat, …", "runs": True, "reason": None}, …]
"""

from __future__ import annotations

import re
from typing import Any

from petalite.attention import BACKENDS
from petalite.device import resolve_device
from petalite.doctor.trials import attention_here, compute_here, engines_here, formats_here
from petalite.engine import OWN_ATTENTION
from petalite.errors import PetaliteError, did_you_mean
from petalite.formats import FORMATS

KINDS = ("formats", "attention", "compute", "engines", "models")
COMPUTES = {
    "fp32": "products in 32-bit floating point",
    "fp16": "products in 16-bit floating point: fast on GPUs",
    "bf16": "products in 16 bits with FP32's range: fast on GPUs from Ampere on, and on processors that have it",
    "int8": "products of 8-bit integers, in the engines: processors, GPUs from Turing on",
    "fp8": "products of 8-bit floats, in the fused engine: GPUs from Ada and Hopper on",
}
ENGINES = {
    "fused": "kernels of Petalite's own in CUDA graphs; what auto takes on an NVIDIA GPU",
    "openvino": "a graph of Petalite's own in OpenVINO; what auto takes on a CPU",
    "module": "plain PyTorch modules as each format builds them: the reference, on any device",
}
#: Where timm keeps the models that are built of its plain `Block`, and the names there that are not.
_HOMES = ("vision_transformer", "deit", "vision_transformer_hybrid")
_OTHER_BLOCKS = re.compile(r"_(18x2|rpn|xp)_|_(dlittle|dpwee|dwee|pwee)_")


def listing(kind: str, device: str = "auto") -> list[dict[str, Any]]:
    """Rows of `name`, `about`, `runs` and `reason` (None where it runs), in the order of the registries.

    Raises PetaliteError for an unknown kind or a device that is not there.
    """
    if kind not in KINDS:
        raise PetaliteError(f"unknown kind '{kind}'{did_you_mean(kind, KINDS)}; kinds: {', '.join(KINDS)}")
    if kind == "models":
        return [_row(name, about, None) for name, about in _models().items()]
    target = resolve_device(device)
    if kind == "formats":
        reasons = formats_here(target)
        return [_row(name, format.about, reasons[name]) for name, format in FORMATS.items()]
    if kind == "compute":
        return [_row(name, COMPUTES[name], reason) for name, reason in compute_here(target).items()]
    engines = engines_here(target)
    if kind == "engines":
        return [_row(name, ENGINES[name], reason) for name, reason in engines.items()]
    by_precision = attention_here(target)
    rows = [_row(name, backend.about, _in_all(by_precision[name])) for name, backend in BACKENDS.items()]
    rows.append(_row(OWN_ATTENTION, "the fused engine's own: the quickest kernel for each shape", engines["fused"]))
    return [*rows, _row("openvino", "the CPU engine's own, which auto brings along", engines["openvino"])]


def _row(name: str, about: str, reason: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "about": f"{about} (not here: {reason})" if reason else about,
        "runs": not reason,
        "reason": reason,
    }


def _in_all(reasons: dict[str, str | None]) -> str | None:
    """None when some precision runs, else the first reason."""
    return None if None in reasons.values() else next(iter(reasons.values()))


def _models() -> dict[str, str]:
    """timm's names whose blocks Petalite supports, with the pretrained weights that there are of each."""
    import timm
    from timm.models import is_model_in_modules

    tags: dict[str, list[str]] = {}
    for full_name in timm.list_pretrained(["vit_*", "deit*"]):
        name, _, tag = full_name.partition(".")
        tags.setdefault(name, []).append(tag)
    return {
        name: f"pretrained: {', '.join(tags[name])}" if name in tags else "no pretrained weights"
        for name in timm.list_models(["vit_*", "deit*"])
        if is_model_in_modules(name, set(_HOMES)) and not _OTHER_BLOCKS.search(name)
    }
