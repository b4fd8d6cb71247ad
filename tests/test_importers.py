"""transformers' ViT folders come in with equal logits and equal preprocessing, or are refused with the reason."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from petalite.data.preprocess import Preprocess
from petalite.errors import PetaliteError
from petalite.importers import is_transformers_folder, read_transformers_vit

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
    "id2label": {0: "daisy", 1: "rose", 2: "tulip"},
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_qkv_bias": {"qkv_bias": False},
    "one_block": {"num_hidden_layers": 1, "patch_size": 16, "image_size": 64},
    "patches_that_leave_a_rest": {"image_size": 36},
    "ratio_that_rounds_down": {"hidden_size": 30, "intermediate_size": 116},
    "two_classes": {"id2label": {0: "cat", 1: "dog"}},
    "gelu_new": {"hidden_act": "gelu_new"},
    "gelu_pytorch_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "quick_gelu": {"hidden_act": "quick_gelu"},
}


def reference(**changes: Any) -> Any:
    """transformers' model with random weights of a size that matters (its own start leaves biases at zero)."""
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**{**SMALL, **changes})).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    size = model.config.image_size
    model.save_pretrained(folder, **options)
    transformers.ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


def imported_logits(folder: Path, images: torch.Tensor) -> torch.Tensor:
    config, tensors = read_transformers_vit(folder)
    assert json.loads(json.dumps(config)) == config
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"]).eval()
    model.load_state_dict(tensors)
    with torch.inference_mode():
        return model(images)


def assert_same_logits(model: Any, folder: Path) -> None:
    side = model.config.image_size
    images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        expected = model(images).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(imported_logits(folder, images), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(reference(), tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


@pytest.mark.parametrize("name", SHAPES)
def test_the_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    model = reference(**SHAPES[name])
    assert_same_logits(model, save(model, tmp_path))


def test_the_current_tensor_names_are_read_too(tmp_path: Path) -> None:
    model = reference()
    folder = save(model, tmp_path, save_original_format=False)
    assert "vit.layers.0.mlp.fc1.weight" in load_file(folder / "model.safetensors")
    assert_same_logits(model, folder)


def test_shards_are_read(tmp_path: Path) -> None:
    model = reference()
    folder = save(model, tmp_path, max_shard_size="20KB")
    assert not (folder / "model.safetensors").exists()
    assert_same_logits(model, folder)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    folder = save(reference().bfloat16(), tmp_path)
    assert {tensor.dtype for tensor in read_transformers_vit(folder)[1].values()} == {torch.float32}


def test_transformers_own_epsilon_changes_little(tmp_path: Path) -> None:
    model = reference(layer_norm_eps=1e-12)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        expected = model(images).logits
    torch.testing.assert_close(imported_logits(save(model, tmp_path), images), expected, atol=1e-4, rtol=1e-4)


def test_classes_and_names_are_kept(folder: Path) -> None:
    config, _ = read_transformers_vit(folder)
    assert (config["num_classes"], config["label_names"]) == (3, ["daisy", "rose", "tulip"])
    edit(folder / "config.json", id2label=None)
    assert read_transformers_vit(folder)[0]["label_names"] == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_more_than_ten_classes_keep_their_order(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(12)]
    config, _ = read_transformers_vit(save(reference(id2label=dict(enumerate(names))), tmp_path))
    assert config["label_names"] == names


@pytest.mark.parametrize(
    ("width", "patch", "expected"),
    [
        (768, 16, "vit_base_patch16_224"),
        (800, 16, "vit_base_patch16_224"),
        (1024, 14, "vit_large_patch14_224"),
        (192, 32, "vit_tiny_patch16_224"),
    ],
)
def test_the_name_is_the_nearest_plain_vit(width: int, patch: int, expected: str) -> None:
    from petalite.importers import ARCHITECTURES, _architecture

    assert _architecture(width, patch) == expected
    assert all(timm.is_model(name) for patches in ARCHITECTURES.values() for name in patches.values())


def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC)


def vit_processor(**settings: Any) -> Any:
    return transformers.ViTImageProcessorPil(**{"size": {"height": 32, "width": 32}, **settings})


def deit_processor(**settings: Any) -> Any:
    sizes = {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}}
    return transformers.DeiTImageProcessorPil(**{**sizes, **settings})


PROCESSORS = {
    "as_it_comes": vit_processor(),
    "bicubic": vit_processor(resample=3, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
    "no_normalization": vit_processor(do_normalize=False),
    "other_scale": vit_processor(rescale_factor=1 / 127.5, image_mean=[1.0, 1.0, 1.0], image_std=[1.0, 1.0, 1.0]),
    "no_rescaling": vit_processor(do_rescale=False, image_mean=[127.5] * 3, image_std=[127.5] * 3),
    "deit": deit_processor(),
    "cropped_by_one": deit_processor(size={"height": 34, "width": 34}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_preprocessing_equals_transformers(name: str, folder: Path) -> None:
    processor = PROCESSORS[name]
    processor.save_pretrained(folder)
    preprocess = Preprocess.from_config(read_transformers_vit(folder)[0])
    expected = processor(photo(), return_tensors="pt")["pixel_values"].float()
    torch.testing.assert_close(preprocess.normalize(preprocess(photo())[None]), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [32, [32, 32], {"height": 32, "width": 32}])
def test_sizes_of_older_files_are_read(size: Any, folder: Path) -> None:
    old = {"feature_extractor_type": "ViTFeatureExtractor", "size": size, "image_mean": None, "image_std": None}
    edit(folder / "preprocessor_config.json", image_processor_type=None, **old)
    config = read_transformers_vit(folder)[0]["pretrained_cfg"]
    assert (config["input_size"], config["mean"], config["interpolation"]) == ([3, 32, 32], [0.5] * 3, "bilinear")


REFUSED_CONFIGS = [
    ({"model_type": "swin"}, "type 'swin'; supported"),
    ({"hidden_act": "relu"}, "activation 'relu'"),
    ({"layer_norm_eps": 0.1}, "layer_norm_eps 0.1"),
    ({"num_channels": 1}, "1 channels"),
    ({"image_size": [32, 64]}, "only square"),
    ({"num_hidden_layers": 3}, "lacks the tensor layers.2.attention.q_proj.weight"),
    ({"num_hidden_layers": 1}, "does not call for: layers.1."),
    ({"intermediate_size": 48}, "mlp.fc1.weight has shape"),
    ({"num_attention_heads": 5}, "5 heads do not divide"),
    ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
    ({"id2label": {"0": "a"}}, "does not name the 3 classes"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "already quantized"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED_CONFIGS, ids=[message for _, message in REFUSED_CONFIGS])
def test_what_cannot_be_imported_is_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    edit(folder / "config.json", **change)
    with pytest.raises(PetaliteError) as caught:
        read_transformers_vit(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"shortest_edge": 32}}, "only square"),
        ({"size": {"height": 48, "width": 48}}, "gives images of 48 px, the model in config.json takes 32 px"),
        ({"do_resize": False}, "does not resize"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "names ConvNextImageProcessor"),
        ({"resample": 9}, "unknown resample 9"),
        ({"image_std": [0.0, 1.0, 1.0]}, "image_std above 0"),
        ({"image_mean": "grey"}, "three numbers each"),
    ],
)
def test_preprocessing_that_timm_lacks_is_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    edit(folder / "preprocessor_config.json", **change)
    with pytest.raises(PetaliteError, match=message):
        read_transformers_vit(folder)


def test_preprocessing_is_never_guessed(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(PetaliteError, match=r"no preprocessor_config\.json"):
        read_transformers_vit(folder)


def test_a_pickle_is_refused_and_not_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(str(folder / "ran"))))
    with pytest.raises(PetaliteError, match="pickled weights"):
        read_transformers_vit(folder)
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(PetaliteError, match="not readable as safetensors"):
        read_transformers_vit(folder)
    assert not (folder / "ran").exists()


class _Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_a_missing_file_and_a_model_without_classifier_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(weights).items() if "classifier" not in name}, weights)
    with pytest.raises(PetaliteError, match=r"lacks the tensor classifier\.weight"):
        read_transformers_vit(folder)
    weights.unlink()
    with pytest.raises(PetaliteError, match=r"no model\.safetensors"):
        read_transformers_vit(folder)


def test_shards_outside_the_folder_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"classifier.weight": "../secret.safetensors"}}))
    with pytest.raises(PetaliteError, match=r"only \.safetensors files beside it"):
        read_transformers_vit(folder)
    index.write_text(json.dumps({"weight_map": {"classifier.weight": "model-1.safetensors"}}))
    with pytest.raises(PetaliteError, match="lacks the shard"):
        read_transformers_vit(folder)


def test_a_transformers_folder_is_told_from_a_timm_one(folder: Path, tmp_path: Path) -> None:
    assert is_transformers_folder(folder)
    edit(folder / "config.json", architecture="vit_base_patch16_224")
    assert not is_transformers_folder(folder)
    assert not is_transformers_folder(tmp_path / "nowhere")
