"""The real photos: what is known about them is found, and the real model's preprocessing equals timm's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from petalite.data import Augment, Preprocess, check_data, decode, load_batches, open_data, train_batches
from petalite.files import read_json

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def flowers(shared: Path) -> Path:
    return shared / "data" / "flowers102"


@pytest.fixture(scope="module")
def preprocess(shared: Path) -> Preprocess:
    return Preprocess.from_config(read_json(shared / "models" / "vit_tiny_patch16_224" / "config.json"))


def test_layout_and_names(flowers: Path) -> None:
    data = open_data(flowers)
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 6552, "valid": 818, "test": 819}
    assert data.folders[:3] == ("1", "10", "100")
    assert data.classes[:3] == ("pink primrose", "globe thistle", "blanket flower")
    assert len(set(data.classes)) == 102 and data.notes == ()


def test_check_finds_the_copies_and_is_quick_the_second_time(flowers: Path) -> None:
    data = open_data(flowers)
    report = check_data(data)
    assert report.unreadable == {}
    assert len(report.copies) == 4
    assert report.copies_across_splits == (
        (flowers / "train/31/image_08077.jpg", flowers / "valid/31/image_08067.jpg"),
    )
    assert report.sizes["min"] == (256, 256)
    start = time.perf_counter()
    assert check_data(data) == report
    assert time.perf_counter() - start < 2


def test_preprocessing_equals_timms(flowers: Path, preprocess: Preprocess, shared: Path) -> None:
    from timm.data import create_transform, resolve_data_config

    config = read_json(shared / "models" / "vit_tiny_patch16_224" / "config.json")
    reference = create_transform(**resolve_data_config({}, pretrained_cfg=config["pretrained_cfg"]), is_training=False)
    paths = [sample.path for sample in open_data(flowers).splits["test"][::50]]
    (batch,) = load_batches(paths, preprocess, batch_size=64, workers=2)
    expected = torch.stack([reference(Image.open(path).convert("RGB")) for path in paths])
    assert torch.equal(preprocess.normalize(batch.pixels), expected)


def test_training_batches(flowers: Path, preprocess: Preprocess) -> None:
    samples = open_data(flowers).splits["train"]
    augment = Augment(preprocess, "rand")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:48].tolist()
    batches = list(train_batches(samples, augment, order, order, 16, workers=2))
    assert torch.cat([targets for _, targets in batches]).tolist() == [samples[index].target for index in order]
    assert torch.equal(batches[2][0][15], augment(decode(samples[order[47]].path), order[47]))
