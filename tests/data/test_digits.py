"""The embedded digits: complete, stratified, made once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petalite.data import check_data, digits_folder, open_data


def test_the_embedded_set() -> None:
    data = open_data("digits")
    assert data.name == "digits"
    assert data.classes == tuple("0123456789")
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 1077, "valid": 360, "test": 360}
    for samples in data.splits.values():
        count = Counter(sample.target for sample in samples)
        assert min(count.values()) >= 0.95 * len(samples) / 10 - 1
    report = check_data(data)
    assert report.unreadable == {} and report.copies == ()
    assert report.sizes["min"] == report.sizes["max"] == (32, 32)


def test_the_files_are_the_digits() -> None:
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    for sample in open_data("digits").splits["test"][::40]:
        number = int(sample.path.stem.removeprefix("digit_"))
        assert targets[number] == sample.target
        small = np.asarray(Image.open(sample.path).resize((8, 8), Image.Resampling.BOX)).astype(float).ravel()
        assert np.corrcoef(small, images[number])[0, 1] > 0.95


def test_made_once_and_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digits_folder()
    stamp = first.stat().st_mtime_ns
    assert digits_folder() == first and first.stat().st_mtime_ns == stamp
    monkeypatch.setenv("PETALITE_CACHE", str(tmp_path))
    second = digits_folder()
    assert second != first
    assert [(p.relative_to(first), p.read_bytes()) for p in sorted(first.rglob("*.png"))] == [
        (p.relative_to(second), p.read_bytes()) for p in sorted(second.rglob("*.png"))
    ]


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETALITE_CACHE", str(tmp_path))

    def interrupted(folder: Path) -> None:
        (folder / "train").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("petalite.data.digits._write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        digits_folder()
    assert list(tmp_path.iterdir()) == []
