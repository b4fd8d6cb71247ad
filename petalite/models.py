"""Vision Transformers by configuration: which are supported, how one is built, which layers it has.

    model = build(config)                      # a timm VisionTransformer on the meta device: shapes, no memory
    config, tensors = pretrained("vit_base_patch16_224", classes=names)

A configuration is the `config.json` of timm's hub layout: `architecture`, `num_classes`, `model_args`,
`pretrained_cfg` (preprocessing), `label_names`.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from petalite.console import say
from petalite.errors import PetaliteError, did_you_mean
from petalite.plan import POSITIONS, in_block, is_head

Config = dict[str, Any]
SUPPORTED = "timm's vit_* and deit* models whose blocks are timm's Block (no relative positions, no parallel blocks)"
#: What model_args may set, and how large, so that a hostile configuration neither reads files nor takes all memory.
_SHAPE = {
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "proj_bias"),
    *("init_values", "class_token", "no_embed_class", "reg_tokens", "pre_norm", "final_norm", "fc_norm"),
    *("global_pool", "act_layer", "norm_layer", "drop_path_rate", "in_chans"),
}
_LARGEST = {
    "img_size": 4096,
    "patch_size": 1024,
    "embed_dim": 16_384,
    "depth": 256,
    "num_heads": 1024,
    "reg_tokens": 256,
}
_PREPROCESSING = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
#: What initializations are made of.
_FILLING = {"normal_", "uniform_", "erfinv_", "clamp_", "fill_", "zero_", "mul_", "add_"}


def build(config: Mapping[str, Any]) -> nn.Module:
    """A timm VisionTransformer of `config` on the meta device. Raises PetaliteError when it is unknown or unsupported."""
    import timm

    name = config.get("architecture")
    if not isinstance(name, str):
        raise PetaliteError("config.json has no 'architecture'; a checkpoint in timm's hub layout names one")
    name = name.split(".")[0]
    check_name(name)
    try:
        with torch.device("meta"), _Unfilled():
            model: nn.Module = timm.create_model(
                name, pretrained=False, num_classes=config.get("num_classes"), **_model_args(config)
            )
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, KeyError) as error:
        raise PetaliteError(f"{name} cannot be built with model_args {config.get('model_args')}: {error}") from error
    check_supported(model, name)
    return model


class _Unfilled(TorchFunctionMode):
    """Lets tensors be filled with nothing: on the meta device they hold no values, and drawing those takes a while."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in _FILLING and args and isinstance(args[0], torch.Tensor):
            return args[0]
        return function(*args, **kwargs or {})


def check_supported(model: nn.Module, name: str) -> None:
    """Raise PetaliteError unless `model` is a timm VisionTransformer of plain blocks."""
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block, VisionTransformer

    if not isinstance(model, VisionTransformer):
        raise PetaliteError(f"{name} is a {type(model).__name__}, which is not supported; supported: {SUPPORTED}")
    for block in model.blocks:
        if type(block) is not Block or type(block.attn) is not Attention:
            kind = type(block).__name__ if type(block) is not Block else type(block.attn).__name__
            raise PetaliteError(f"{name} has blocks of type {kind}, which are not supported; supported: {SUPPORTED}")


def layers(model: nn.Module) -> list[str]:
    """The layers that a plan names: the patch embedding, each block's Linears, the head, in the order of the model."""
    return [
        name
        for name, module in model.named_modules()
        if (name == "patch_embed.proj")
        or (isinstance(module, nn.Linear) and (is_head(name) or (in_block(name) and _is_plan_layer(name))))
    ]


def weight_name(layer: str) -> str:
    """The tensor that holds a layer's weight; the position embedding, which a plan may name as well, is one itself."""
    return layer if layer == POSITIONS else f"{layer}.weight"


def as_matrix(weight: Tensor) -> Tensor:
    """A weight as formats pack it, (rows, columns): a convolution's kernels and a position embedding's tokens as rows."""
    return weight[0] if weight.ndim == 3 else weight.flatten(1)


def create(
    name: str,
    *,
    pretrained: bool,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[Config, dict[str, Tensor]]:
    """Configuration and float32 tensors of timm's model `name`: pretrained (downloaded, cached), or random from `seed`.

    `classes` makes a new head with those labels; `image_size` resamples the position embeddings.
    Raises PetaliteError for an unknown or unsupported name and where the download fails.
    """
    import timm

    check_name(name)
    arguments = dict(model_args or {})
    if image_size is not None:
        arguments["img_size"] = image_size
    if classes is not None:
        arguments["num_classes"] = len(classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            logging.getLogger("timm").setLevel(logging.ERROR)
            if pretrained:
                say(f"{name}: pretrained weights from the hub (or its local cache)")
            model: Any = timm.create_model(name, pretrained=pretrained, **arguments)
        except (TypeError, ValueError, AssertionError) as error:
            raise PetaliteError(f"{name} cannot be built with {arguments}: {error}") from error
        except Exception as error:
            if not pretrained:
                raise
            reason = textwrap.shorten(str(error).strip().splitlines()[0], 160, placeholder=" …")
            raise PetaliteError(
                f"the pretrained weights of {name} could not be downloaded ({reason}); "
                "check the network, give a local checkpoint folder, or use --pretrained no for random weights"
            ) from error
    check_supported(model, name)
    arguments.pop("num_classes", None)
    settings = {key: value for key, value in model.pretrained_cfg.items() if key in (*_PREPROCESSING, "tag", "license")}
    if not pretrained:
        settings["crop_pct"] = 1.0  # cutting off the edges is a habit of the weights; new ones see the whole image
    height, width = model.patch_embed.img_size
    settings["input_size"] = [3, height, width]
    config = complete_config(
        {
            "architecture": name.split(".")[0],
            "num_classes": model.num_classes,
            "num_features": model.num_features,
            "model_args": arguments,
            "pretrained_cfg": settings,
        },
        classes,
    )
    return config, {key: value.detach().float().contiguous() for key, value in model.state_dict().items()}


def adapt(
    config: Config,
    tensors: dict[str, Tensor],
    *,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> tuple[Config, dict[str, Tensor]]:
    """A checkpoint's configuration and float32 tensors with a new head and position embeddings resampled as asked.

    The head is made new (zeros, as timm does for fine-tuning) when the labels differ from the checkpoint's.
    """
    config = {
        **config,
        "model_args": dict(config.get("model_args") or {}),
        "pretrained_cfg": dict(config["pretrained_cfg"]),
    }
    tensors = dict(tensors)
    if image_size is not None:
        old = build(config)
        config["model_args"]["img_size"] = image_size
        config["pretrained_cfg"]["input_size"] = [3, image_size, image_size]
        tensors["pos_embed"] = _resampled(tensors["pos_embed"], old, build(config))
    if classes is not None and list(classes) != list(config.get("label_names") or ()):
        config["num_classes"] = len(classes)
        config.pop("label_descriptions", None)
        for head in [name for name in layers(build(config)) if is_head(name)]:
            width = tensors[f"{head}.weight"].shape[1]
            tensors[f"{head}.weight"] = torch.zeros(len(classes), width)
            tensors[f"{head}.bias"] = torch.zeros(len(classes))
    return complete_config(config, classes), tensors


def complete_config(config: Config, classes: Sequence[str] | None) -> Config:
    """`config` with labels, and with what timm and transformers read repeated where each looks for it."""
    settings = {**config["pretrained_cfg"], "num_classes": config["num_classes"], "fixed_input_size": True}
    settings |= {"first_conv": "patch_embed.proj", "classifier": "head", "pool_size": None}
    settings["input_size"] = list(settings["input_size"])
    config = {**config, "pretrained_cfg": settings}
    if classes is not None:
        config["label_names"] = list(classes)
    if not config.get("model_args"):
        config.pop("model_args", None)
    return config


def _resampled(embedding: Tensor, old: Any, new: Any) -> Tensor:
    """Position embedding (1, prefix + N, C) for another grid, bicubic with antialiasing, as timm does."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    prefix = 0 if old.no_embed_class else old.num_prefix_tokens
    resampled: Tensor = resample_abs_pos_embed(
        embedding.float(),
        new_size=list(new.patch_embed.grid_size),
        old_size=list(old.patch_embed.grid_size),
        num_prefix_tokens=prefix,
    )
    return resampled


def _model_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration file may tell timm: a shape. Names of files to load (`checkpoint_path`) are refused."""
    arguments = dict(config.get("model_args") or {})
    if unknown := sorted(set(arguments) - _SHAPE):
        raise PetaliteError(
            f"config.json: model_args may not hold '{unknown[0]}'; allowed: {', '.join(sorted(_SHAPE))}"
        )
    for name, largest in _LARGEST.items():
        value = arguments.get(name, 0)
        if not all(
            isinstance(item, int) and 0 <= item <= largest for item in (value if isinstance(value, list) else [value])
        ):
            raise PetaliteError(
                f"config.json: model_args: {name} must be a whole number of at most {largest}, got {value!r}"
            )
    pool = config.get("global_pool")
    if pool is not None:
        arguments.setdefault("global_pool", pool)
    for key in ("img_size", "patch_size"):
        if isinstance(arguments.get(key), list):
            arguments[key] = tuple(arguments[key])
    return arguments


def _is_plan_layer(name: str) -> bool:
    return name.endswith((".attn.qkv", ".attn.proj", ".mlp.fc1", ".mlp.fc2"))


def check_name(name: str) -> None:
    """Raise PetaliteError unless `name` is a vit_* or deit* that timm knows; a pretrained tag after a dot is left to timm."""
    import timm

    name = name.split(".")[0]

    if not name.startswith(("vit_", "deit")):
        raise PetaliteError(f"'{name}' is not supported; supported: {SUPPORTED}, or a folder that holds a checkpoint")
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(["vit_*", "deit*"]))
        raise PetaliteError(f"timm has no model '{name}'{hint}; a folder needs config.json and model.safetensors")
