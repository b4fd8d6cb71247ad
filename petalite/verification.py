"""Is this checkpoint what it was when it was written, and does it fit together? A flipped bit is found and named.

    report = verify(Path("runs/demo/checkpoints/nf4"))
    report.ok                          # False
    print("\\n".join(report.lines()))   # error: the tensor blocks.3.mlp.fc1.weight is not what was written …

Each file is compared with the SHA-256 that `plan.json` records for it and, where the weights differ, each tensor with
its own. Then names, shapes and precisions are compared with the configuration and the plan, packed weights are
unpacked, and the preprocessing is read. A folder that another tool wrote has no hashes: that is a note, not an error.
Nothing in the folder is ever executed: pickles are refused, JSON and safetensors are only read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from petalite import models
from petalite.checkpoint import (
    WEIGHTS,
    Checkpoint,
    find_problems,
    read_checkpoint,
    read_config,
    read_tensors,
    tensor_hash,
)
from petalite.data.preprocess import Preprocess
from petalite.errors import PetaliteError
from petalite.files import read_json, sha256
from petalite.formats import get_format
from petalite.formats.plain import DTYPES
from petalite.importers import is_transformers_folder
from petalite.plan import Plan, block_count

T = TypeVar("T")
_KINDS: Mapping[str, tuple[type, str]] = {
    "architecture": (str, "a name"),
    "num_classes": (int, "a number"),
    "label_names": (list, "a list of names"),
    "model_args": (dict, "an object"),
    "pretrained_cfg": (dict, "an object"),
}
#: Arguments of timm.create_model that do more than shape a model; the first opens any file, a pickle too.
_FOREIGN_ARGS = frozenset(
    {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only"}
)
MAX_NAMED = 5  # how many findings of one kind are named before the others are only counted


@dataclass(frozen=True)
class Finding:
    """One line about a checkpoint: an `error` (do not use it) or a `note` (something that could not be checked)."""

    level: str
    text: str


@dataclass
class VerifyReport:
    """What was found in the checkpoint at `path`, and what was compared to find it."""

    path: Path
    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no error was found."""
        return all(finding.level != "error" for finding in self.findings)

    def lines(self) -> list[str]:
        """Text for a person: a line for each finding, then the outcome."""
        outcome = f"{'ok' if self.ok else 'not ok'}: {', '.join(self.checked) or 'nothing could be checked'}"
        return [*(f"{finding.level}: {finding.text}" for finding in self.findings), outcome]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        findings = [{"level": finding.level, "text": finding.text} for finding in self.findings]
        lines = self.lines()
        return {"path": str(self.path), "ok": self.ok, "findings": findings, "checked": self.checked, "lines": lines}

    def errors(self, texts: Iterable[str]) -> None:
        """Add an error for each text; of more than `MAX_NAMED`, the rest as a count."""
        texts = list(texts)
        shown = texts[:MAX_NAMED] + ([f"and {len(texts) - MAX_NAMED} more like it"] if len(texts) > MAX_NAMED else [])
        self.findings += [Finding("error", text) for text in shown]

    def attempt(self, what: str, action: Callable[[], T]) -> T | None:
        """What `action` returns; None, and an error, when it fails."""
        try:
            return action()
        except PetaliteError as error:
            self.errors([str(error)])
        except Exception as error:  # the content is not to be trusted, and may break whatever reads it
            first = (str(error).strip().splitlines() or ["no message"])[0][:200]
            self.errors([f"{what} cannot be read: {type(error).__name__}: {first}"])
        return None


def verify(path: str | Path) -> VerifyReport:
    """Verify a checkpoint folder. Never raises for what the folder holds: every defect is a finding."""
    report = VerifyReport(Path(path))
    config = report.attempt("config.json", lambda: read_config(report.path))
    if config is None:
        return report
    if report.attempt("config.json", lambda: is_transformers_folder(report.path)):
        report.findings.append(
            Finding("note", "saved by transformers: no hashes are recorded, so a flipped bit stays hidden")
        )
        checkpoint = report.attempt(str(report.path), lambda: read_checkpoint(report.path))
    else:
        wrong = _wrong_settings(config)
        report.errors(wrong)
        checkpoint = _read_hashed(report, config) if not wrong else None
    if checkpoint is not None:
        _check_content(report, checkpoint)
    return report


def _wrong_settings(config: Mapping[str, Any]) -> list[str]:
    """Values of another kind than timm writes, and arguments that would do more than shape the model."""
    wrong = [
        f"config.json: {key} is {config[key]!r:.60}, expected {name}"
        for key, (kind, name) in _KINDS.items()
        if config.get(key) is not None and not isinstance(config[key], kind)
    ]
    foreign = sorted(_FOREIGN_ARGS & set(config["model_args"])) if isinstance(config.get("model_args"), dict) else []
    return wrong + [
        f"config.json: model_args holds {key}, which is no dimension of a model; remove it" for key in foreign
    ]


def _read_hashed(report: VerifyReport, config: dict[str, Any]) -> Checkpoint | None:
    """A checkpoint in timm's hub layout, its files compared with plan.json's hashes; None when it is unreadable."""
    tensors = report.attempt(WEIGHTS, lambda: read_tensors(report.path))
    if not (report.path / "plan.json").exists():
        report.findings.append(
            Finding("note", "plan.json is missing: no hashes are recorded, so a flipped bit stays hidden")
        )
        if tensors is None or not _depth_fits(report, config, tensors):
            return None
        return report.attempt(str(report.path), lambda: read_checkpoint(report.path))
    plan = report.attempt("plan.json", lambda: _read_plan(report, tensors))
    if tensors is None or plan is None or not _depth_fits(report, config, tensors):
        return None
    return Checkpoint(report.path, config, plan, tensors)


def _read_plan(report: VerifyReport, tensors: Mapping[str, Tensor] | None) -> Plan:
    recorded = read_json(report.path / "plan.json")
    if isinstance(recorded, dict):
        _check_hashes(report, recorded, tensors)
    return Plan.from_dict(recorded)


# hashes


def _check_hashes(report: VerifyReport, recorded: Mapping[str, Any], tensors: Mapping[str, Tensor] | None) -> None:
    files, hashes = recorded.get("files"), recorded.get("tensors")
    if not isinstance(files, dict) or not isinstance(hashes, dict) or not {"config.json", WEIGHTS} <= set(files):
        report.errors(["plan.json does not record the hashes of the files and tensors; write the checkpoint again"])
        return
    for name, digest in files.items():
        file = report.path / name
        if Path(name).name != name or not file.is_file():
            report.errors([f"{name}, which plan.json lists, is missing"])
        elif sha256(file) != digest:
            report.errors(_differences(name, hashes, tensors if name == WEIGHTS else None))
    report.checked.append(f"{len(files)} files")


def _differences(file: str, hashes: Mapping[str, Any], tensors: Mapping[str, Tensor] | None) -> list[str]:
    """Why `file` does not have its hash: the tensors that changed, where they can be read, else the file itself."""
    if tensors is None:
        return [f"{file} is not what was written (its SHA-256 differs from plan.json); restore it"]
    changed = [
        f"the tensor {name} is not what was written (its SHA-256 differs from plan.json); restore {file}"
        for name, tensor in tensors.items()
        if name in hashes and tensor_hash(tensor) != hashes[name]
    ]
    changed += [
        f"the tensor {name} is not among those that were written" for name in sorted(set(tensors) - set(hashes))
    ]
    changed += [f"the tensor {name} was written, but is missing" for name in sorted(set(hashes) - set(tensors))]
    return changed or [
        f"{file} differs from its SHA-256 in plan.json, though every tensor agrees: its header was changed"
    ]


# what the files say


def _depth_fits(report: VerifyReport, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether `model_args.depth` is the number of blocks that the weights have; before a model so deep is built."""
    model_args = config.get("model_args")
    depth = model_args.get("depth") if isinstance(model_args, dict) else None
    blocks = block_count(tensors)
    if depth is not None and depth != blocks:
        report.errors([f"config.json says {depth!r} blocks, {WEIGHTS} holds {blocks}"])
        return False
    return True


def _check_content(report: VerifyReport, checkpoint: Checkpoint) -> None:
    """Tensors against configuration and plan, packed weights, finite numbers, preprocessing."""
    report.attempt("the preprocessing", lambda: Preprocess.from_config(checkpoint.config))
    problems = report.attempt("the configuration", lambda: find_problems(checkpoint))
    if problems is None:
        return
    report.errors(problems)
    if not problems:
        model = checkpoint.skeleton()
        report.errors(_precision_problems(checkpoint, model))
        _check_packed(report, checkpoint, model)
        report.checked += [f"plan {checkpoint.plan.format}", f"{len(checkpoint.classes)} classes", "preprocessing"]
    infinite = (name for name, tensor in checkpoint.tensors.items() if not _is_finite(tensor))
    report.errors(
        f"the tensor {name} holds NaN or infinity; its training diverged or it is damaged" for name in infinite
    )
    report.checked.append(f"{len(checkpoint.tensors)} tensors")


def _precision_problems(checkpoint: Checkpoint, model: nn.Module) -> Iterator[str]:
    """Plain tensors whose dtype is not the one that the plan states for them, and layers that the plan leaves out."""
    plan = checkpoint.plan
    known = models.layers(model)
    yield from (f"plan.json does not say how {name} is stored" for name in known if name not in plan.layers)
    for name in model.state_dict():
        layer, _, kind = name.rpartition(".")
        stated = plan.layers.get(layer if kind == "weight" else name, plan.rest)
        if stated in DTYPES and checkpoint.tensors[name].dtype != DTYPES[stated]:
            yield f"{name} is stored as {_dtype_name(checkpoint.tensors[name])}, plan.json says {stated}"


def _check_packed(report: VerifyReport, checkpoint: Checkpoint, model: nn.Module) -> None:
    """Unpack every packed weight and compare its shape with the model's."""
    state = model.state_dict()
    matrices = {name: tuple(models.as_matrix(state[models.weight_name(name)]).shape) for name in checkpoint.packed}
    skipped: set[str] = set()
    for layer, stored in checkpoint.plan.layers.items():
        format = get_format(stored)
        if format.plain or stored in skipped:
            continue
        if reason := format.missing(torch.device("cpu")):
            report.findings.append(Finding("note", f"{stored} weights were not unpacked: {reason}"))
            skipped.add(stored)
            continue
        what = f"the {stored} weight of {layer}"
        weight = report.attempt(what, partial(format.unpack, checkpoint.layer(layer)))
        if weight is not None and tuple(weight.shape) != matrices[layer]:
            report.errors([f"{what} unpacks to {tuple(weight.shape)}, expected {matrices[layer]}"])
        elif weight is not None and not _is_finite(weight):
            report.errors([f"{what} unpacks to NaN or infinity; it is damaged"])


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _dtype_name(tensor: Tensor) -> str:
    return re.sub(r"^torch\.", "", str(tensor.dtype))
