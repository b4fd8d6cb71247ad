"""Checkpoints on disk: timm's hub layout, plus the plan and the hashes that prove what is inside.

    checkpoint = read_checkpoint("runs/demo/checkpoints/nf4")
    checkpoint.plan.format                     # 'nf4'
    checkpoint.layer("blocks.0.attn.qkv")      # the packed tensors of one layer
    write_checkpoint(out, config, tensors, plan)

A folder holds `config.json` (architecture, preprocessing, labels), `model.safetensors`, `plan.json` (which layer has
which format; SHA-256 of each file and each tensor) and `README.md` (the model card). A folder without `plan.json`, as
timm writes them, is a plain checkpoint. Folders of transformers' `ViTForImageClassification` are imported as they are
read. Weights in pickle files are refused: loading one runs code that its author chose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petalite import models
from petalite.card import model_card
from petalite.errors import PetaliteError
from petalite.files import atomic_folder, disk_bytes, read_json, sha256, write_json, write_text
from petalite.formats import get_format
from petalite.formats.plain import DTYPES
from petalite.importers import is_transformers_folder, read_transformers_vit
from petalite.outline import Outline, outline_of
from petalite.plan import POSITIONS, Plan

WEIGHTS = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: its configuration, its plan and its tensors as they stand on disk."""

    path: Path
    config: models.Config
    plan: Plan
    tensors: Mapping[str, Tensor] = field(repr=False)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order; `class 0` … where the checkpoint has none."""
        names = self.config.get("label_names")
        count = int(self.config["num_classes"])
        return tuple(map(str, names)) if names else tuple(f"class {index}" for index in range(count))

    @property
    def disk_bytes(self) -> int:
        """Bytes of the whole folder."""
        return disk_bytes(self.path)

    def skeleton(self) -> nn.Module:
        """The model on the meta device: shapes, no memory."""
        return models.build(self.config)

    def layer(self, name: str) -> dict[str, Tensor]:
        """The packed tensors of one layer, by their name after the layer's; its bias is not among them."""
        if name in self.tensors:  # the position embedding, plain
            return {"weight": self.tensors[name]}
        prefix = f"{name}."
        return {
            key.removeprefix(prefix): value
            for key, value in self.tensors.items()
            if key.startswith(prefix) and key != f"{prefix}bias"
        }

    def plain_tensors(self) -> dict[str, Tensor]:
        """Every parameter in float32, as if nothing had been quantized: packed weights are unpacked."""
        owned = {f"{name}.{key}" for name in self.packed for key in self.layer(name)}
        plain = {key: value.float() for key, value in self.tensors.items() if key not in owned}
        return plain | {models.weight_name(name): self.unpacked(name) for name in self.packed}

    @cached_property
    def packed(self) -> tuple[str, ...]:
        """The layers whose weights are not plain tensors."""
        return tuple(name for name, stored in self.plan.layers.items() if not get_format(stored).plain)

    @cached_property
    def outline(self) -> Outline:
        """What is asked of the model most often; without timm where it is known."""
        return outline_of(self.config)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape that each tensor of the model has when nothing is packed."""
        return self.outline.shapes

    def unpacked(self, layer: str) -> Tensor:
        """A layer's weight in float32 and in the model's shape; formats pack matrices, a convolution's weight as one."""
        weight = get_format(self.plan.layers[layer]).unpack(self.layer(layer))
        return weight.reshape(self.shapes[models.weight_name(layer)])


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint folder and check it against its own configuration and plan.

    Raises PetaliteError: not a checkpoint, pickled or damaged weights, missing or wrongly shaped tensors, a class
    count that the head does not have, a plan that the tensors do not follow, an unsupported architecture.
    """
    path = Path(path)
    config = read_config(path)
    if is_transformers_folder(path):
        config, tensors = read_transformers_vit(path)
        plan = _plain_plan(config, tensors)
    else:
        tensors = read_tensors(path)
        plan = (
            Plan.from_dict(read_json(path / "plan.json"))
            if (path / "plan.json").exists()
            else _plain_plan(config, tensors)
        )
    checkpoint = Checkpoint(path, config, plan, tensors)
    if problems := find_problems(checkpoint):
        raise PetaliteError(
            f"{path}: {problems[0]}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
        )
    return checkpoint


def find_problems(checkpoint: Checkpoint) -> list[str]:
    """What does not fit between configuration, plan and tensors, a line each; empty when all is well."""
    config, plan, tensors = checkpoint.config, checkpoint.plan, checkpoint.tensors
    if not isinstance(config.get("pretrained_cfg"), dict):
        return ["config.json has no preprocessing ('pretrained_cfg')"]
    outline = checkpoint.outline
    problems: list[str] = []
    names = config.get("label_names")
    if names is not None and len(names) != config.get("num_classes"):
        problems.append(f"config.json has {len(names)} label_names for {config.get('num_classes')} classes")
    known = [*outline.layers, POSITIONS]
    if unknown := sorted((set(plan.layers) | set(plan.activations)) - set(known)):
        problems.append(f"plan.json names layers that the model does not have: {', '.join(unknown[:3])}")
    problems += outline.merge_problems(plan)
    packed = {name for name in known if name in plan.layers and not get_format(plan.layers[name]).plain}
    weights = {models.weight_name(name): name for name in packed}
    for name, expected in outline.shapes.items():
        if name in weights:
            if "weight" not in checkpoint.layer(weights[name]):
                problems.append(f"{WEIGHTS} lacks the tensor {weights[name]}.weight")
            continue
        if name not in tensors:
            problems.append(f"{WEIGHTS} lacks the tensor {name}")
        elif tensors[name].shape != expected:
            problems.append(_shape_problem(name, tuple(tensors[name].shape), expected))
        elif not tensors[name].is_floating_point():
            problems.append(f"{name} is {tensors[name].dtype}, but the plan does not say that it is quantized")
    expected_names = set(outline.shapes) | {f"{name}.{key}" for name in packed for key in checkpoint.layer(name)}
    if extra := sorted(set(tensors) - expected_names):
        problems.append(f"{WEIGHTS} holds tensors that the model does not have: {', '.join(extra[:3])}")
    return problems


def write_checkpoint(
    path: Path, config: models.Config, tensors: Mapping[str, Tensor], plan: Plan, notes: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Write a checkpoint folder (all of it or nothing) and return it. `notes` go into the model card."""
    from safetensors.torch import save_file

    path = Path(path)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_folder(path) as folder:
        save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / "config.json", config)
        write_text(folder / "README.md", model_card(config, plan, disk_bytes(folder / WEIGHTS), notes or {}))
        files = {name: sha256(folder / name) for name in ("config.json", WEIGHTS)}
        hashes = {name: tensor_hash(tensor) for name, tensor in kept.items()}
        write_json(folder / "plan.json", {**plan.as_dict(), "files": files, "tensors": hashes})
    return Checkpoint(path, config, plan, kept)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of `path/model.safetensors`, on the CPU. Raises PetaliteError for pickles and damaged files."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights = path / WEIGHTS
    if not weights.is_file():
        if pickles := sorted(file.name for pattern in _PICKLES for file in path.glob(pattern)):
            raise PetaliteError(
                f"{path}: weights in a pickle file ({pickles[0]}) are refused, since loading one can run any code; "
                f"convert them to {WEIGHTS} where you trust them"
            )
        raise PetaliteError(f"{path} is not a checkpoint: {WEIGHTS} is missing")
    with weights.open("rb") as file:
        start = file.read(8)
    if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or start[:4] == b"PK\x03\x04":
        raise PetaliteError(f"{weights} is a pickle, not safetensors; pickled weights are refused")
    try:
        return load_file(weights)
    except (SafetensorError, OSError, ValueError) as error:
        raise PetaliteError(f"{weights} is damaged or is not safetensors: {error}") from error


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_config(path: Path) -> models.Config:
    """The configuration of the checkpoint folder `path`, whatever it says. Raises PetaliteError where it has none."""
    if not path.exists():
        raise PetaliteError(f"{path} does not exist")
    if not path.is_dir():
        raise PetaliteError(f"{path} is a file; a checkpoint is a folder with config.json and {WEIGHTS}")
    if not (path / "config.json").is_file():
        raise PetaliteError(f"{path} is not a checkpoint: config.json is missing; expected timm's hub layout")
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise PetaliteError(
            f"{path / 'config.json'} holds a {type(config).__name__}, not an object; write the checkpoint again"
        )
    return config


def _plain_plan(config: models.Config, tensors: Mapping[str, Tensor]) -> Plan:
    """The plan of a checkpoint without one: every layer in the precision in which the tensors stand."""
    if config.get("quantization_config"):
        raise PetaliteError(
            "this checkpoint was quantized by another tool; quantize its plain parent with petalite instead"
        )
    floating = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    stored = max(set(floating), key=floating.count) if floating else torch.float32
    if stored not in _DTYPE_NAMES:
        raise PetaliteError(f"the weights are stored as {stored}; expected one of {', '.join(DTYPES)}")
    name = _DTYPE_NAMES[stored]
    return Plan(name, dict.fromkeys(outline_of(config).layers, name), name)


def _shape_problem(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if name.startswith("head"):
        return f"the head has {found[0]} classes, but config.json says {expected[0]} ({name} is {found})"
    return f"{name} has shape {found}, expected {expected}"
