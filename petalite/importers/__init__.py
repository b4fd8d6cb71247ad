"""Import of transformers' `ViTForImageClassification` folders: the same network under timm's names and layout.

transformers stores the model that timm calls a VisionTransformer with query, key and value apart and preprocessing in
a file of its own. Here both become a `config.json` of timm's hub layout and timm's tensors; transformers itself is not
needed.

    config, tensors = read_transformers_vit(Path("my-finetuned-vit"))
    config["label_names"], tensors["blocks.0.attn.qkv.weight"].shape      # ['cat', 'dog'], (2304, 768)

The logits are equal but for one thing that timm's configuration cannot carry: the epsilon of the layer norms, 1e-12 in
transformers' default and 1e-6 in timm (and in the original JAX models, whose weights both publish). On a real ViT-Ti
that moves logits of up to 11 by 0.00005. An epsilon beyond `MAX_EPSILON` is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from petalite.errors import PetaliteError
from petalite.files import read_json
from petalite.importers.preprocessing import read_preprocessing, square_side
from petalite.importers.weights import SUPPORTED, read_weights, timm_tensors

__all__ = ["is_transformers_folder", "read_transformers_vit"]

MAX_EPSILON = 1e-5
#: Activations by transformers' name, as timm names them.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
#: timm's plain ViTs, by width and then by patch: the name is a label, every dimension is written to `model_args`.
ARCHITECTURES = {
    192: {16: "vit_tiny_patch16_224"},
    384: {8: "vit_small_patch8_224", 16: "vit_small_patch16_224", 32: "vit_small_patch32_224"},
    768: {8: "vit_base_patch8_224", 16: "vit_base_patch16_224", 32: "vit_base_patch32_224"},
    1024: {14: "vit_large_patch14_224", 16: "vit_large_patch16_224", 32: "vit_large_patch32_224"},
    1280: {14: "vit_huge_patch14_224"},
}


def is_transformers_folder(folder: Path) -> bool:
    """Whether `folder` holds a model as transformers saves it (of any type), rather than one in timm's hub layout."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        return False
    config = read_json(path)
    return isinstance(config, dict) and "model_type" in config and "architecture" not in config


def read_transformers_vit(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration (timm's hub layout) and the float32 tensors (timm's names and shapes) of such a folder.

    Raises PetaliteError for another model type, pickled or quantized weights, missing or unexpected tensors, and a
    preprocessing or an activation that timm does not have.
    """
    folder = Path(folder)
    source = read_json(folder / "config.json")
    if not isinstance(source, dict):
        raise PetaliteError(f"{folder}/config.json is not an object; expected the one that transformers writes")
    if (kind := source.get("model_type")) != "vit":
        raise PetaliteError(f"{folder} is a transformers model of type {kind!r}; supported: {SUPPORTED}")
    if source.get("quantization_config"):
        raise PetaliteError(f"{folder} is already quantized; import the model that it was made from")
    model_args = _model_args(source, folder)
    preprocessing = read_preprocessing(folder, model_args["img_size"])
    tensors = timm_tensors(read_weights(folder), model_args, folder)
    classes = len(tensors["head.weight"])
    return {
        "architecture": _architecture(model_args["embed_dim"], model_args["patch_size"]),
        "num_classes": classes,
        "num_features": model_args["embed_dim"],
        "label_names": _label_names(source, classes, folder),
        "model_args": model_args,
        "pretrained_cfg": {
            **preprocessing,
            "num_classes": classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }, tensors


def _model_args(source: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """timm's constructor arguments; ViTConfig's defaults where config.json is silent."""
    given = {key: value for key, value in source.items() if value is not None}
    activation, epsilon = given.get("hidden_act", "gelu"), given.get("layer_norm_eps", 1e-12)
    if activation not in ACTIVATIONS:
        raise PetaliteError(f"{folder} uses the activation {activation!r}; supported: {', '.join(ACTIVATIONS)}")
    if not isinstance(epsilon, int | float) or not 0 <= epsilon <= MAX_EPSILON:
        raise PetaliteError(f"{folder} has layer_norm_eps {epsilon}; timm's is 1e-6, supported: up to {MAX_EPSILON}")
    if (channels := given.get("num_channels", 3)) != 3:
        raise PetaliteError(f"{folder} takes images of {channels} channels; only RGB (3) is supported")

    def size(key: str, default: int) -> int:
        number = given.get(key, default)
        if not isinstance(number, int) or number < 1:
            raise PetaliteError(f"{folder}/config.json: {key} is {number!r}; expected a positive number")
        return number

    width, hidden, heads = size("hidden_size", 768), size("intermediate_size", 3072), size("num_attention_heads", 12)
    if width % heads:
        raise PetaliteError(f"{folder}/config.json: {heads} heads do not divide a width of {width}")
    exact = int(width * (hidden / width)) == hidden  # timm takes the ratio and rounds down
    return {
        "img_size": square_side(given.get("image_size", 224), "image_size", folder),
        "patch_size": square_side(given.get("patch_size", 16), "patch_size", folder),
        "embed_dim": width,
        "depth": size("num_hidden_layers", 12),
        "num_heads": heads,
        "mlp_ratio": hidden / width if exact else (hidden + 0.5) / width,
        "qkv_bias": bool(given.get("qkv_bias", True)),
        "act_layer": ACTIVATIONS[activation],
    }


def _architecture(width: int, patch: int) -> str:
    """timm's name for the plain ViT nearest in width, then in patch size."""
    patches = ARCHITECTURES[min(ARCHITECTURES, key=lambda known: abs(known - width))]
    return patches[min(patches, key=lambda known: abs(known - patch))]


def _label_names(source: Mapping[str, Any], classes: int, folder: Path) -> list[str]:
    """Class names in index order, from `id2label`; transformers' own stand-ins where there is none."""
    labels = source.get("id2label") or {str(index): f"LABEL_{index}" for index in range(classes)}
    if not isinstance(labels, dict) or set(labels) != {str(index) for index in range(classes)}:
        raise PetaliteError(f"{folder}: id2label in config.json does not name the {classes} classes of the classifier")
    return [str(labels[str(index)]) for index in range(classes)]
