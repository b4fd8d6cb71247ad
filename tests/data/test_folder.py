"""Layouts, splits and class names; and every complaint about a folder, by its words."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from petalite.data import ImageData, open_data
from petalite.errors import PetaliteError

MakeTree = Callable[[dict[str, int]], Path]
SPLITS = {"train/cat": 4, "train/dog": 3, "val/cat": 2, "val/dog": 1, "test/cat": 1, "test/dog": 2}


def counts(data: ImageData) -> dict[str, list[int]]:
    """Split -> images of each class."""
    per_split = {split: Counter(sample.target for sample in samples) for split, samples in data.splits.items()}
    return {split: [count[target] for target in range(len(data.classes))] for split, count in per_split.items()}


def all_paths(data: ImageData) -> list[Path]:
    return [sample.path for samples in data.splits.values() for sample in samples]


def refused(path: str | Path, *parts: str) -> None:
    """`open_data(path)` ends in one line that holds all `parts`, and in exit code 2."""
    with pytest.raises(PetaliteError) as caught:
        open_data(path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message
    assert caught.value.exit_code == 2


# --- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("valid", ["valid", "val", "validation", "Val"])
def test_three_splits(make_tree: MakeTree, valid: str) -> None:
    root = make_tree({folder.replace("val/", f"{valid}/"): count for folder, count in SPLITS.items()})
    data = open_data(root)
    assert (data.name, data.folders, data.classes, data.notes) == ("photos", ("cat", "dog"), ("cat", "dog"), ())
    assert list(data.splits) == ["train", "valid", "test"]
    assert counts(data) == {"train": [4, 3], "valid": [2, 1], "test": [1, 2]}
    assert data.splits["valid"][-1].path == root / valid / "dog" / "000.png"


def test_agrees_with_torchvision(make_tree: MakeTree) -> None:
    from torchvision.datasets import ImageFolder

    root = make_tree({f"{split}/{name}": 2 for split in ("train", "valid", "test") for name in ("10", "2", "B", "a")})
    data = open_data(root)
    reference = ImageFolder(root / "train")
    assert list(data.folders) == reference.classes
    assert [(str(sample.path), sample.target) for sample in data.splits["train"]] == reference.samples


def test_without_test_the_given_valid_becomes_test(make_tree: MakeTree) -> None:
    root = make_tree({"train/cat": 20, "train/dog": 10, "valid/cat": 3, "valid/dog": 3})
    data = open_data(root)
    assert counts(data) == {"train": [18, 9], "valid": [2, 1], "test": [3, 3]}
    assert {sample.path.parent.parent.name for sample in data.splits["test"]} == {"valid"}
    assert data.notes == (
        "no test folder: valid is used as test",
        "10 % of train is used as valid: stratified by class, seed 0",
    )


def test_without_valid_it_is_carved_from_train(make_tree: MakeTree) -> None:
    data = open_data(make_tree({"train/cat": 20, "train/dog": 2, "test/cat": 3, "test/dog": 3}), seed=4)
    assert counts(data) == {"train": [18, 1], "valid": [2, 1], "test": [3, 3]}
    assert data.notes == ("10 % of train is used as valid: stratified by class, seed 4",)


@pytest.mark.parametrize("place", ["", "train/"])
def test_one_folder_of_class_folders(make_tree: MakeTree, place: str) -> None:
    root = make_tree({f"{place}cat": 20, f"{place}dog": 3})
    data = open_data(root, seed=1)
    assert counts(data) == {"train": [16, 1], "valid": [2, 1], "test": [2, 1]}
    assert len(set(all_paths(data))) == 23
    assert data.notes == ("split 80/10/10 into train, valid and test: stratified by class, seed 1",)


def test_a_split_depends_on_the_seed_and_not_on_the_place(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"cat": 30, "dog": 30})
    moved = shutil.copytree(root, tmp_path / "elsewhere" / "other")

    def chosen(folder: Path, seed: int) -> list[Path]:
        return [sample.path.relative_to(folder) for sample in open_data(folder, seed).splits["test"]]

    assert chosen(root, 0) == chosen(moved, 0)
    assert chosen(root, 0) != chosen(root, 1)


def test_another_class_does_not_move_the_split_of_the_first(make_tree: MakeTree) -> None:
    root = make_tree({"cat": 30, "dog": 30})
    before = [sample.path for sample in open_data(root).splits["test"]]
    shutil.copytree(root / "cat", root / "bird")
    after = [sample.path for sample in open_data(root).splits["test"] if sample.path.parent.name != "bird"]
    assert before == after


def test_deeper_images_count_and_hidden_or_other_files_do_not(make_tree: MakeTree) -> None:
    root = make_tree({**SPLITS, "train/cat/kittens": 2, "train/cat/.thumbnails": 1, "train/.cache": 1, ".git": 1})
    (root / "train" / "cat" / "._000.png").write_bytes(b"x")
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / "PHOTO.JPEG").write_bytes(b"x")
    data = open_data(root)
    assert counts(data)["train"] == [4 + 2 + 1, 3]
    assert data.folders == ("cat", "dog")


def test_tiny_imagenet(make_tree: MakeTree) -> None:
    root = make_tree({"train/n01/images": 10, "train/n02/images": 10, "val/images": 4, "test/images": 3})
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tcrane\n")
    (root / "val" / "val_annotations.txt").write_text(
        "".join(f"{number:03d}.png\tn0{1 + number % 2}\t0\t0\t63\t63\n" for number in range(4))
    )
    (root / "train" / "n01" / "n01_boxes.txt").write_text("000.png\t0\t0\t63\t63\n")
    data = open_data(root)
    assert (data.folders, data.classes) == (("n01", "n02"), ("goldfish", "crane"))
    assert counts(data) == {"train": [9, 9], "valid": [1, 1], "test": [2, 2]}
    assert [sample.path.name for sample in data.splits["test"]] == ["000.png", "002.png", "001.png", "003.png"]
    assert data.notes[0].startswith("Tiny-ImageNet: the labelled val is used as test")
    assert "stratified by class, seed 0" in data.notes[1]


def test_tiny_imagenet_with_damaged_annotations(make_tree: MakeTree) -> None:
    root = make_tree({"train/n01/images": 2, "train/n02/images": 2, "val/images": 1})
    (root / "wnids.txt").write_text("n01\nn02\n")
    (root / "val" / "val_annotations.txt").write_text("000.png n07\n")
    refused(root, "val_annotations.txt, line 1: expected a file and a class of train, found '000.png n07'")


def test_without_drops_files(make_tree: MakeTree) -> None:
    root = make_tree(SPLITS)
    data = open_data(root)
    smaller = data.without([root / "train/cat/001.png", root / "test/dog/000.png"])
    assert counts(smaller) == {"train": [3, 3], "valid": [2, 1], "test": [1, 1]}
    assert counts(data)["train"] == [4, 3]


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("cat_to_name.json", json.dumps({"cat": "pink primrose", "extra": "?"}), ("pink primrose", "dog")),
        ("cat_to_name.json", json.dumps({"cat": "pet", "dog": "pet"}), ("pet (cat)", "pet (dog)")),
        ("classes.txt", "Tom\n\nSpike the dog\n", ("Tom", "Spike the dog")),
        ("classes.txt", "dog  Spike the dog\ncat Tom\n", ("Tom", "Spike the dog")),
        ("classes.txt", "dog\ncat\n", ("cat", "dog")),
    ],
)
def test_class_names(make_tree: MakeTree, file: str, content: str, expected: tuple[str, ...]) -> None:
    root = make_tree(SPLITS)
    (root / file).write_text(content)
    assert open_data(root).classes == expected


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("classes.txt", "one\ntwo\nthree\n", "classes.txt names 3 classes but there are 2 class folders"),
        ("cat_to_name.json", "{", "cat_to_name.json cannot be read as JSON"),
        ("cat_to_name.json", '["cat"]', "cat_to_name.json is not a map of folder to name"),
    ],
)
def test_class_names_that_do_not_fit(make_tree: MakeTree, file: str, content: str, complaint: str) -> None:
    root = make_tree(SPLITS)
    (root / file).write_text(content)
    refused(root, complaint)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_a_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere does not exist; give a folder of images, or 'digits'")


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"x")
    refused(tmp_path / "photos.zip", "photos.zip is a file; give a folder of images: expected train/CLASS/*.jpg")


def test_no_images(tmp_path: Path, make_tree: MakeTree) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty has no images; expected train/CLASS/*.jpg")
    refused(make_tree({"cat": 0, "dog": 0}), "photos has no images, only the folders cat, dog; expected")


def test_a_flat_folder_of_images(make_tree: MakeTree) -> None:
    refused(make_tree({"": 5}), "photos holds 5 images but no class folders; expected train/CLASS/*.jpg")


def test_a_flat_test_folder(make_tree: MakeTree) -> None:
    root = make_tree({"train/cat": 2, "train/dog": 2, "test": 3})
    refused(root, "test holds 3 images but no class folders; expected")


def test_an_empty_class(make_tree: MakeTree) -> None:
    refused(
        make_tree({**SPLITS, "train/eel": 0, "val/eel": 1}), "train has no images in the class folder eel; add some"
    )


def test_one_class_only(make_tree: MakeTree) -> None:
    refused(make_tree({"train/cat": 9, "valid/cat": 2}), "train has one class only (cat); a classifier needs two")


def test_classes_that_differ_between_splits(make_tree: MakeTree) -> None:
    extra = {f"train/x{number}": 1 for number in range(8)}
    refused(
        make_tree({**SPLITS, **extra, "test/emu": 1}),
        "val differ: val lacks x0, x1, x2, x3, x4 and 3 more; make them the same",
    )


def test_a_class_that_train_lacks(make_tree: MakeTree) -> None:
    refused(make_tree({**SPLITS, "test/emu": 1}), "test differ: train lacks emu; make them the same")


def test_too_few_images_to_split(make_tree: MakeTree) -> None:
    refused(make_tree({"cat": 9, "dog": 2, "eel": 1}), "too few images to split in dog, eel; each class needs 3")


def test_too_few_images_to_carve(make_tree: MakeTree) -> None:
    root = make_tree({"train/cat": 9, "train/dog": 1, "test/cat": 1, "test/dog": 1})
    refused(root, "too few images to split in dog; each class needs 2 or more")


def test_splits_without_train(make_tree: MakeTree) -> None:
    refused(make_tree({"valid/cat": 1, "test/cat": 1}), "has valid, test but no train folder")


def test_two_validation_folders(make_tree: MakeTree) -> None:
    refused(make_tree({**SPLITS, "validation/cat": 1}), "has both val and validation; keep one of them")


def test_a_split_without_images(make_tree: MakeTree) -> None:
    root = make_tree({"train/cat": 2, "train/dog": 2, "test/cat": 0, "test/dog": 0})
    refused(root, "test has class folders but no images")
