"""The recipe of a study: frozen dataclasses that read and write TOML. Every field is documented here, once.

    recipe = Recipe.from_toml(Path("recipes/flowers102-vit-ti.toml"))
    recipe = recipe.with_options({"train.epochs": 3, "budget_points": 0.5})
    recipe.to_toml()

The command line takes its help texts from `describe`, so that they cannot drift apart.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from petalite.errors import PetaliteError, did_you_mean

METHODS = ("lora", "qlora", "head", "full", "qat", "none")
REFERENCE_VARIANTS = ("fp32", "nf4-fa2", "int8-fa2", "nf4-sdpa", "int8-sdpa")
T = TypeVar("T")


def _field(default: Any, help: str) -> Any:
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainRecipe:
    """How the model is fine-tuned."""

    method: str = _field(
        "lora",
        "What is trained: lora, qlora (LoRA over NF4, or over a quantized checkpoint), head, full, "
        "qat (every weight of a quantized checkpoint), or none.",
    )
    epochs: int = _field(6, "Passes over the training images.")
    batch_size: int = _field(32, "Images a forward pass, on each process.")
    accumulate: int = _field(1, "Forward passes an optimizer step; the effective batch is their product.")
    lr: float = _field(
        0.0, "Peak learning rate; 0 takes the method's: lora and qlora 2e-3, head 5e-3, full 1e-4, qat 5e-4."
    )
    weight_decay: float = _field(0.01, "AdamW's weight decay, on matrices only.")
    warmup: float = _field(0.05, "Share of the steps in which the learning rate rises; then it falls as a cosine.")
    label_smoothing: float = _field(0.1, "Probability spread evenly over all classes in the target.")
    clip_norm: float = _field(1.0, "Largest norm of the gradient; 0 leaves it as it is.")
    augment: str = _field("light", "Augmentation: none, shift, light (crops, flips) or rand (light + RandAugment).")
    flip: bool = _field(True, "Mirror images left to right half of the time; not for digits or text.")
    rank: int = _field(8, "Rank r of the LoRA matrices.")
    alpha: int = _field(32, "LoRA's alpha: its update is scaled by alpha / r.")
    dropout: float = _field(0.0, "Dropout on LoRA's input.")
    targets: tuple[str, ...] = _field(("qkv", "proj", "fc1", "fc2"), "Layers of each block that get LoRA matrices.")
    class_weights: bool = _field(False, "Weight classes by the inverse of their frequency.")
    teacher: str = _field("", "Checkpoint whose answers are learned as well, e.g. the plain parent of a quantized one.")
    checkpointing: bool = _field(False, "Recompute activations in the backward pass: less memory, a third slower.")
    precision: str = _field(
        "auto", "auto (bf16 on CPUs and Ampere or newer, else fp16 with loss scaling), fp32, bf16, fp16."
    )
    save_minutes: float = _field(5.0, "Save a resume point every so many minutes, besides after each epoch.")


@dataclass(frozen=True)
class MeasureRecipe:
    """How variants are measured."""

    batch_sizes: tuple[int, ...] = _field((1,), "Batch sizes at which latency is measured.")
    throughput_batches: tuple[int, ...] = _field((1, 8, 32), "Batch sizes of the throughput sweep.")
    samples: int = _field(30, "Fewest latency samples a variant and batch size.")
    seconds: float = _field(3.0, "Fewest seconds of latency samples a variant and batch size.")
    rounds: int = _field(5, "Interleaved rounds over which the samples are spread.")
    threads: int = _field(0, "Threads on a CPU; 0 takes all available cores.")


@dataclass(frozen=True)
class Recipe:
    """A whole study: images, model, training, variants, measurement."""

    data: str = _field("digits", "Folder of images, or 'digits' for the embedded set.")
    model: str = _field("vit_base_patch16_224", "A checkpoint folder or a timm name (vit_*, deit*).")
    pretrained: bool = _field(
        True, "Start from pretrained weights; no: random ones, for speed studies and tiny models."
    )
    image_size: int = _field(0, "Side of the input in pixels; 0 keeps the model's.")
    model_args: dict[str, Any] = _field({}, "Arguments for timm's model, e.g. depth or embed_dim.")
    variants: tuple[str, ...] = _field(
        REFERENCE_VARIANTS,
        "What is compared: FORMAT[-ATTENTION[-COMPUTE[-ENGINE]]]; the first is the baseline. The reference's five run in plain "
        "PyTorch modules, as the reference ran them; others on the fused engine where there is one.",
    )
    keep: tuple[str, ...] = _field((), "Layers that stay in 16 bits: blocks.21, first_last, globs.")
    ablation: tuple[str, ...] = _field(
        (), "Formats whose layers are ablated, block by block: nf4, int8; none if empty."
    )
    budget_points: float = _field(1.0, "Points of top-1 that may be lost.")
    seed: int = _field(0, "Seed of splits, initialization, data order and augmentation.")
    train: TrainRecipe = field(default_factory=TrainRecipe)
    measure: MeasureRecipe = field(default_factory=MeasureRecipe)

    def __post_init__(self) -> None:
        """Refuse values that cannot work, as a PetaliteError."""
        _check(self)

    @classmethod
    def from_toml(cls, path: Path) -> Recipe:
        """Read a recipe. Raises PetaliteError for a missing file, TOML errors, unknown fields and wrong types."""
        try:
            value = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise PetaliteError(f"recipe {path} does not exist") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise PetaliteError(f"recipe {path} cannot be read: {error}") from error
        return cls.from_dict(value, str(path))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Build from plain values, as TOML and JSON give them."""
        return _build(cls, value, where)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: nested dicts, with lists for tuples."""
        value: dict[str, Any] = _plain(dataclasses.asdict(self))
        return value

    def to_toml(self) -> str:
        """The recipe as TOML."""
        import tomli_w

        return tomli_w.dumps(self.as_dict())

    def with_options(self, options: Mapping[str, Any]) -> Recipe:
        """The recipe with some fields replaced; keys are dotted (`train.epochs`), None leaves a field as it is."""
        value = self.as_dict()
        for key, new in options.items():
            if new is None:
                continue
            *path, last = key.split(".")
            place = value
            for part in path:
                place = place[part]
            place[last] = new
        return Recipe.from_dict(value, "options")


def demo_recipe() -> Recipe:
    """The study of `petalite demo`: a small ViT trained from nothing on the embedded digits, about a minute on 2 cores."""
    return Recipe(
        data="digits",
        model="vit_tiny_patch16_224",
        pretrained=False,
        image_size=32,
        model_args={"patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2},
        budget_points=2.0,
        train=TrainRecipe(
            method="full",
            epochs=60,
            batch_size=64,
            lr=1e-3,
            augment="shift",
            flip=False,
            precision="fp32",
            label_smoothing=0.05,
        ),
        measure=MeasureRecipe(throughput_batches=(1, 32)),
    )


def describe(key: str) -> str:
    """The help text of a field by its dotted name, e.g. `train.epochs`."""
    kind: Any = Recipe
    *path, last = key.split(".")
    for part in path:
        kind = get_type_hints(kind)[part]
    return str(next(item.metadata["help"] for item in fields(kind) if item.name == last))


def _check(recipe: Recipe) -> None:
    train, measure = recipe.train, recipe.measure
    _among("train.method", train.method, METHODS)
    _among("train.augment", train.augment, ("none", "shift", "light", "rand"))
    _among("train.precision", train.precision, ("auto", "fp32", "bf16", "fp16"))
    _at_least("train.epochs", train.epochs, 1)
    for name in ("batch_size", "accumulate", "rank"):
        _at_least(f"train.{name}", getattr(train, name), 1)
    for name in ("lr", "weight_decay", "clip_norm", "save_minutes"):
        _at_least(f"train.{name}", getattr(train, name), 0)
    for name in ("warmup", "label_smoothing", "dropout"):
        if not 0 <= getattr(train, name) < 1:
            raise PetaliteError(f"train.{name} must be at least 0 and below 1, got {getattr(train, name)}")
    for target in train.targets:
        _among("train.targets", target, ("qkv", "proj", "fc1", "fc2"))
    for name in ("batch_sizes", "throughput_batches"):
        for size in getattr(measure, name):
            _at_least(f"measure.{name}", size, 1)
    _at_least("measure.samples", measure.samples, 1)
    _at_least("measure.rounds", measure.rounds, 1)
    _at_least("budget_points", recipe.budget_points, 0)
    if not recipe.variants:
        raise PetaliteError("variants is empty; name at least one, e.g. fp32")
    if len(set(recipe.variants)) != len(recipe.variants):
        raise PetaliteError("variants names one of them twice")


def _among(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PetaliteError(f"unknown {name} '{value}'{did_you_mean(value, known)}; known: {', '.join(known)}")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise PetaliteError(f"{name} must be at least {least}, got {value}")


def _build(cls: type[T], value: Mapping[str, Any], where: str) -> T:
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, given in value.items():
        if key not in hints:
            raise PetaliteError(f"{where}: unknown field '{key}'{did_you_mean(key, hints)}; known: {', '.join(hints)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(given, Mapping):
                raise PetaliteError(f"{where}: '{key}' must be a table")
            arguments[key] = _build(hints[key], given, f"{where}: {key}")
        else:
            arguments[key] = _converted(hints[key], given, f"{where}: {key}")
    return cls(**arguments)


def _converted(hint: Any, given: Any, where: str) -> Any:
    if get_origin(hint) is tuple:
        items = [given] if isinstance(given, (str, int)) else given
        if not isinstance(items, (list, tuple)):
            raise PetaliteError(f"{where} must be a list")
        return tuple(_converted(get_args(hint)[0], item, where) for item in items)
    if get_origin(hint) is dict:
        if not isinstance(given, Mapping):
            raise PetaliteError(f"{where} must be a table")
        return dict(given)
    if hint is float and isinstance(given, int) and not isinstance(given, bool):
        return float(given)
    if not isinstance(given, hint) or (hint is not bool and isinstance(given, bool)):
        raise PetaliteError(f"{where} must be of type {hint.__name__}, got {given!r}")
    return given


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
