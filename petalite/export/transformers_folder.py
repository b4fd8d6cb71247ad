"""transformers: a folder that `ViTForImageClassification` and `AutoImageProcessor` load, both without code of ours.

The reverse of `petalite.importers`: query, key and value apart, preprocessing in a file of its own. What transformers'
ViT does not have (register tokens, layer scales, other poolings, …) is refused; timm's folders, which transformers loads
through its wrapper of timm, have all of it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petalite.checkpoint import WEIGHTS, Checkpoint
from petalite.data import Preprocess
from petalite.errors import PetaliteError
from petalite.export.targets import Array, Job, Run, as_float32
from petalite.export.timm_folder import plain, refuse_merging
from petalite.files import write_json
from petalite.importers import ACTIVATIONS
from petalite.importers.preprocessing import RESAMPLING

#: timm's name of a block's part, and transformers' name on disk.
_PARTS = {
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}
_OUTSIDE = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "head": "classifier",
}


def write(job: Job, folder: Path) -> None:
    """Write `config.json`, `preprocessor_config.json` and `model.safetensors`.

    Raises PetaliteError for a model or a preprocessing that transformers' ViT does not have, and for merged tokens.
    """
    from safetensors.torch import save_file

    refuse_merging(job.checkpoint, "transformers")
    tensors = _renamed(job.checkpoint)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / "config.json", _config(job.checkpoint, tensors))
    write_json(folder / "preprocessor_config.json", _preprocessing(job.preprocess))


def _renamed(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every tensor under transformers' names. Raises PetaliteError for one that its ViT does not have, or lacks."""
    model: Any = checkpoint.skeleton()
    if model.global_pool != "token" or hasattr(model, "head_dist"):
        raise PetaliteError(f"transformers' ViT reads the class token alone, this model does not; {_ELSE}")
    if model.no_embed_class or not model.has_class_token or _activation(model) is None:
        raise PetaliteError(f"transformers' ViT has no such tokens or activation as this model; {_ELSE}")
    found: dict[str, Tensor] = {}
    for name, tensor in plain(checkpoint).items():
        found |= as_transformers(name, tensor)
    names = sorted(model.state_dict())
    biased = (name for name in names if name.endswith(".weight") and not name.endswith("attn.qkv.weight"))
    if lacking := [name for name in biased if f"{name.removesuffix('weight')}bias" not in names]:
        raise PetaliteError(f"transformers' ViT has a bias beside {lacking[0]}, this model has none; {_ELSE}")
    return {name: tensor.contiguous() for name, tensor in found.items()}


_ELSE = "export to timm instead, whose folders transformers loads through its timm wrapper"


def as_transformers(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """timm's tensor `name` under the names on disk; query, key and value are tensors of their own.

    Raises PetaliteError for one that transformers' ViT does not have.
    """
    part, _, kind = name.rpartition(".")
    if name in _OUTSIDE:
        return {_OUTSIDE[name]: tensor}
    if part in _OUTSIDE:
        return {f"{_OUTSIDE[part]}.{kind}": tensor}
    place = part.split(".", 2)
    if place[0] == "blocks" and place[2] == "attn.qkv":
        at = f"vit.encoder.layer.{place[1]}.attention.attention"
        parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        return {f"{at}.{which}.{kind}": value.clone() for which, value in parts}
    if place[0] == "blocks" and place[2] in _PARTS:
        return {f"vit.encoder.layer.{place[1]}.{_PARTS[place[2]]}.{kind}": tensor}
    raise PetaliteError(f"transformers' ViT has no {name}; {_ELSE}")


def _activation(model: Any) -> str | None:
    """transformers' name of the model's activation, None for one it is not told of here."""
    act = model.blocks[0].mlp.act
    tanh = getattr(act, "approximate", "none") == "tanh"
    known = {"GELU": "gelu_tanh" if tanh else "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
    name = known.get(type(act).__name__)
    return next((theirs for theirs, ours in ACTIVATIONS.items() if ours == name), None)


def _config(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> dict[str, Any]:
    model: Any = checkpoint.skeleton()
    height, width = model.patch_embed.img_size
    high, wide = model.patch_embed.patch_size
    if height != width or high != wide:
        raise PetaliteError(f"transformers' ViT takes square images and patches, this model does not; {_ELSE}")
    block = model.blocks[0]
    labels = {str(index): name for index, name in enumerate(checkpoint.classes)}
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": _activation(model),
        "layer_norm_eps": block.norm1.eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": block.attn.qkv.bias is not None,
        "image_size": height,
        "patch_size": high,
        "num_channels": 3,
        "dtype": str(tensors["classifier.weight"].dtype).removeprefix("torch."),
        "id2label": labels,
        "label2id": {name: int(index) for index, name in labels.items()},
    }


def _preprocessing(preprocess: Preprocess) -> dict[str, Any]:
    """An image processor's settings: ViT's where the image is squeezed into a square, CLIP's where its middle is cut."""
    side = math.floor(preprocess.size[0] / preprocess.crop_pct)
    if preprocess.crop_mode == "border" or side < preprocess.size[0]:
        raise PetaliteError(
            f"transformers' image processors do not fill up borders as this preprocessing does; {_ELSE}"
        )
    numbers = {name: number for number, name in RESAMPLING.items()}
    squash = preprocess.crop_mode == "squash"
    crop = side != preprocess.size[0] or not squash
    return {
        "image_processor_type": ("DeiTImageProcessor" if crop else "ViTImageProcessor")
        if squash
        else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side} if squash else {"shortest_edge": side},
        "resample": numbers[preprocess.interpolation],
        "do_center_crop": crop,
        "crop_size": {"height": preprocess.size[0], "width": preprocess.size[1]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def run(job: Job, folder: Path) -> Run:
    """transformers' model behind its own image processor, one image (1, h, w, 3) at a time, in float32 on the CPU."""
    from transformers import AutoImageProcessor, ViTForImageClassification

    processor = AutoImageProcessor.from_pretrained(folder)
    model: Any = ViTForImageClassification.from_pretrained(folder, dtype=torch.float32)
    model.eval()

    def answers(batch: Array) -> Array:
        given = processor(images=list(batch), return_tensors="pt", input_data_format="channels_last")
        with torch.inference_mode():
            return as_float32(model(**given).logits.numpy())

    return answers


def runtime() -> str:
    """transformers and its version."""
    import transformers

    return f"transformers {transformers.__version__} with its image processor, CPU"
