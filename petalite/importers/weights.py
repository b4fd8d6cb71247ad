"""The weights of a transformers ViT folder, read from safetensors and brought to timm's names and shapes.

transformers writes a block's parts under older names than its code now has (`encoder.layer.0.intermediate.dense`
for `layers.0.mlp.fc1`); both are read. Query, key and value become one matrix, stacked in that order.

    tensors = timm_tensors(read_weights(folder), model_args, folder)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petalite.errors import PetaliteError
from petalite.files import read_json

SUPPORTED = "transformers' ViTForImageClassification (model_type 'vit') with safetensors weights"

#: (what is on disk, the name in transformers' current code), applied in this order.
_RENAMED = (
    (r"^vit\.", ""),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)
#: A block's parts, apart from query, key and value: transformers' name, timm's name.
_PARTS = {
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
#: Left in the file by another kind of training, and not part of a classifier.
_UNUSED = ("pooler.", "embeddings.mask_token")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of `model.safetensors`, or of the shards that its index names; pickled weights are refused."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        files = _shards(index)
    elif any(folder.glob("pytorch_model*.bin")):
        raise PetaliteError(
            f"{folder} holds pickled weights (pytorch_model.bin), which can run code when loaded and are refused; "
            "save it again with transformers' save_pretrained, which writes safetensors"
        )
    else:
        raise PetaliteError(f"{folder} holds no model.safetensors; supported: {SUPPORTED}")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise PetaliteError(f"{file} is not readable as safetensors ({error}); fetch or save it again") from error
    return tensors


def timm_tensors(stored: Mapping[str, Tensor], model_args: Mapping[str, Any], folder: Path) -> dict[str, Tensor]:
    """timm's tensors, float32, in timm's order; each stored tensor is used once and none may be left over.

    Raises PetaliteError, naming the tensor, for one that is missing, unexpected, of another shape or not floating.
    """
    remaining = {current_name(name): tensor for name, tensor in stored.items()}
    width, patch = model_args["embed_dim"], model_args["patch_size"]
    hidden = int(width * model_args["mlp_ratio"])
    tokens = 1 + (model_args["img_size"] // patch) ** 2

    def take(name: str, *shape: int) -> Tensor:
        if name not in remaining:
            raise PetaliteError(f"{folder} lacks the tensor {name}; supported: {SUPPORTED}")
        tensor = remaining.pop(name)
        if shape and tuple(tensor.shape) != shape:
            raise PetaliteError(f"{folder}: {name} has shape {tuple(tensor.shape)}, config.json asks for {shape}")
        if not tensor.is_floating_point():
            raise PetaliteError(f"{folder}: {name} holds {tensor.dtype}; only floating-point weights can be imported")
        return tensor.float().contiguous()

    tensors = {
        "cls_token": take("embeddings.cls_token", 1, 1, width),
        "pos_embed": take("embeddings.position_embeddings", 1, tokens, width),
        "patch_embed.proj.weight": take("embeddings.patch_embeddings.projection.weight", width, 3, patch, patch),
        "patch_embed.proj.bias": take("embeddings.patch_embeddings.projection.bias", width),
    }
    shapes = {"attention.o_proj": (width, width), "mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    for block in range(model_args["depth"]):
        for kind, shape in (("weight", (width, width)), ("bias", (width,))):
            if kind == "weight" or model_args["qkv_bias"]:
                parts = [take(f"layers.{block}.attention.{part}_proj.{kind}", *shape) for part in "qkv"]
                tensors[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)  # 3 * width, ...
        for source, target in _PARTS.items():
            shape = shapes.get(source, (width,))
            tensors[f"blocks.{block}.{target}.weight"] = take(f"layers.{block}.{source}.weight", *shape)
            tensors[f"blocks.{block}.{target}.bias"] = take(f"layers.{block}.{source}.bias", shape[0])
    tensors["norm.weight"] = take("layernorm.weight", width)
    tensors["norm.bias"] = take("layernorm.bias", width)
    tensors["head.weight"] = take("classifier.weight")
    tensors["head.bias"] = take("classifier.bias", len(tensors["head.weight"]))
    if tensors["head.weight"].shape[1:] != (width,):
        raise PetaliteError(f"{folder}: the classifier does not take {width} features, as config.json says it does")
    unknown = [name for name in remaining if not name.startswith(_UNUSED)]
    if unknown:
        raise PetaliteError(f"{folder} holds tensors that its config.json does not call for: {', '.join(unknown[:3])}")
    return tensors


def current_name(name: str) -> str:
    """A tensor's name on disk, or in any version of transformers, as its current code has it; without `vit.` in front."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _shards(index: Path) -> list[Path]:
    """The files that a shard index names: beside it, never elsewhere."""
    content = read_json(index)
    mapping = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(mapping, dict) or not mapping:
        raise PetaliteError(f"{index} has no weight_map; fetch or save the model again")
    names = sorted({str(name) for name in mapping.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise PetaliteError(f"{index} names the file {name!r}; only .safetensors files beside it are read")
        if not (index.parent / name).is_file():
            raise PetaliteError(f"{index.parent} lacks the shard {name} that its index names; fetch it again")
    return [index.parent / name for name in names]
