"""What is asked of a model's outline: as timm's model has it, and without timm where it is known already."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from petalite import models, outline
from petalite.errors import PetaliteError
from petalite.files import cache_dir
from petalite.outline import Outline, outline_of
from tests.engine.networks import MODELS, checkpoint_of


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETALITE_CACHE", str(tmp_path / "cache"))


def config_of(name: str, tmp_path: Path) -> dict[str, Any]:
    return dict(checkpoint_of(name, tmp_path / "checkpoint").config)


@pytest.mark.parametrize("name", [*MODELS, "distilled"])
def test_it_says_what_the_model_says(name: str, tmp_path: Path) -> None:
    config = config_of(name, tmp_path)
    model: Any = models.build(config)
    found = outline_of(config)
    assert found.shapes == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert list(found.layers) == models.layers(model)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (found.depth, found.width, found.prefix) == (len(model.blocks), model.embed_dim, model.num_prefix_tokens)
    assert (found.patches, found.pooling) == (model.patch_embed.num_patches, model.global_pool)
    assert found.distilled == (name == "distilled")
    assert set(found.norms) >= {"blocks.0.norm1", "blocks.0.norm2"} and found.unsupported is None


def test_what_is_kept_is_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("class token", tmp_path)
    first = outline_of(config)
    (file,) = (cache_dir() / "outlines").iterdir()
    assert file.suffix == ".json" and Outline.from_dict(json.loads(file.read_text())) == first
    monkeypatch.setattr(models, "build", lambda _: pytest.fail("the model was built"))
    assert outline_of(config) == first


@pytest.mark.parametrize("kept", ["", "[]", "{}", "null", '{"depth": 12}', "shapes", "norms", "more"])
def test_what_is_damaged_is_made_again(tmp_path: Path, kept: str) -> None:
    config = config_of("class token", tmp_path)
    first = outline_of(config)
    (file,) = (cache_dir() / "outlines").iterdir()
    whole = json.loads(file.read_text())
    damaged = {"shapes": whole | {"shapes": [1]}, "norms": whole | {"norms": {"norm": [1]}}, "more": whole | {"x": 1}}
    file.write_text(json.dumps(damaged[kept]) if kept in damaged else kept)
    assert outline_of(config) == first
    assert Outline.from_dict(json.loads(file.read_text())) == first


def test_another_configuration_or_version_is_another_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("class token", tmp_path)
    first = outline_of(config)
    more = outline_of({**config, "num_classes": config["num_classes"] + 1})
    assert more.shapes["head.weight"] != first.shapes["head.weight"]
    assert replace(more, shapes=first.shapes, parameters=first.parameters) == first
    assert outline_of({**config, "label_names": None}) == first  # decides nothing of the model
    assert len(list((cache_dir() / "outlines").iterdir())) == 2
    monkeypatch.setattr(outline.metadata, "version", lambda _: "0.0")
    assert outline_of(config) == first and len(list((cache_dir() / "outlines").iterdir())) == 3


@pytest.mark.parametrize("name", ["resnet50", "vit_such_patch16_224", None, ["vit"], "../../vit"])
def test_what_is_refused_is_refused_each_time_and_leaves_nothing(name: Any, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(PetaliteError):
            outline_of({"architecture": name, "num_classes": 2})
    assert not cache_dir().exists()


def test_what_json_does_not_hold_is_built_each_time(tmp_path: Path) -> None:
    config = config_of("class token", tmp_path)
    assert outline_of({**config, "global_pool": None}) == outline_of(config)
    with pytest.raises(PetaliteError):
        outline_of({**config, "model_args": {"img_size": {1, 2}}})


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("class token", tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PETALITE_CACHE", str(tmp_path / "file" / "below"))
    assert outline_of(config).depth == 2


def test_a_checkpoint_of_a_known_structure_is_read_without_timm(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("class token", tmp_path / "checkpoint")
    read = (
        "import sys\n"
        "from petalite.checkpoint import read_checkpoint\n"
        "from petalite.engine.weights import read_network\n"
        f"network = read_network(read_checkpoint({str(checkpoint.path)!r}))\n"
        "print(len(network.blocks), 'timm' in sys.modules, 'torchvision' in sys.modules)\n"
    )
    said = [subprocess.run([sys.executable, "-c", read], capture_output=True, text=True).stdout for _ in range(2)]
    assert said[0].split()[1] == "True" and said[1].split()[1:] == ["False", "False"]
    assert said[0].split()[0] == said[1].split()[0]
