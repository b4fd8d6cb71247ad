"""Tiny-ImageNet's own layout (Le & Yang, Stanford CS231N 2015), read as it is unpacked.

    tiny-imagenet-200/wnids.txt, words.txt
                      train/n01443537/images/*.JPEG
                      val/images/*.JPEG, val/val_annotations.txt

Its `test` has no labels, so the labelled `val` is the test split here and validation is carved from `train`.
"""

from __future__ import annotations

from pathlib import Path

from petalite.data.classnames import unique_names
from petalite.data.listing import check_classes, check_same_classes, images_by_class, samples_of
from petalite.data.samples import ImageData, carve_valid
from petalite.errors import PetaliteError


def is_tiny_imagenet(root: Path) -> bool:
    """Whether a folder has this layout: `wnids.txt` beside `train`."""
    return (root / "wnids.txt").is_file() and (root / "train").is_dir()


def open_tiny_imagenet(root: Path, seed: int) -> ImageData:
    """Read the layout; names are the first synonym in `words.txt`. Raises PetaliteError when a part is missing."""
    images = images_by_class(root / "train")
    check_classes(images, root / "train")
    folders = tuple(images)
    test = samples_of(_labelled(root / "val", folders), folders)
    train, valid, note = carve_valid(samples_of(images, folders), folders, seed)
    notes = ("Tiny-ImageNet: the labelled val is used as test; its own test has no labels", note)
    splits = {"train": train, "valid": valid, "test": test}
    return ImageData(root.resolve().name, root, folders, unique_names(folders, _words(root)), splits, notes)


def _labelled(val: Path, folders: tuple[str, ...]) -> dict[str, list[Path]]:
    """Class folder -> files of `val`, by its annotations or, where someone has sorted them already, by its folders."""
    annotations = val / "val_annotations.txt"
    if not annotations.is_file():
        if not val.is_dir():
            raise PetaliteError(f"{val} does not exist; unpack Tiny-ImageNet again")
        images = images_by_class(val)
        check_same_classes(val.parent / "train", set(folders), val, set(images))
        return images
    labelled: dict[str, list[Path]] = {folder: [] for folder in folders}
    for number, line in enumerate(_read(annotations), start=1):
        fields = line.split()
        if len(fields) < 2 or fields[1] not in labelled:
            raise PetaliteError(f"{annotations}, line {number}: expected a file and a class of train, found '{line}'")
        labelled[fields[1]].append(val / "images" / fields[0])
    return {folder: sorted(paths) for folder, paths in labelled.items()}


def _words(root: Path) -> dict[str, str]:
    """wnid -> first synonym, from `words.txt` when it is there."""
    names: dict[str, str] = {}
    if (root / "words.txt").is_file():
        for line in _read(root / "words.txt"):
            folder, _, synonyms = line.partition("\t")
            names[folder.strip()] = synonyms.split(",")[0].strip()
    return names


def _read(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PetaliteError(f"{path} cannot be read as text: {error}") from error
