"""A folder of images -> samples, class names and three splits, whichever of the usual layouts it has.

    data = open_data("flowers102")             # train/, valid/ and test/ with a folder for each class
    data.classes[data.splits["test"][0].target]        # "pink primrose"

Layouts: `train` + `valid`|`val`|`validation` + `test`, of which valid or test may be missing; one folder of class
folders; Tiny-ImageNet; and the word "digits" for the embedded set. A split that is missing is made, and told in
`notes`. Names come from `cat_to_name.json` or `classes.txt` in the folder, else from the class folders.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from petalite.data.classnames import class_names
from petalite.data.digits import digits_folder
from petalite.data.listing import LAYOUT, check_classes, check_same_classes, images_by_class, samples_of
from petalite.data.samples import ImageData, Sample, carve_valid, listed, split_all
from petalite.data.tiny_imagenet import is_tiny_imagenet, open_tiny_imagenet
from petalite.errors import PetaliteError

__all__ = ["ImageData", "Sample", "open_data"]

SPLITS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}


def open_data(path: str | Path, seed: int = 0) -> ImageData:
    """Find splits and classes in a folder; "digits" is the embedded set. No image is opened.

    `seed` decides the splits that have to be made. Raises PetaliteError, one line, for a missing folder, one without
    images or class folders, an empty class, a single class, or splits whose classes differ.
    """
    if str(path) == "digits":
        return replace(open_data(digits_folder(), seed), name="digits")
    root = Path(path)
    if not root.exists():
        raise PetaliteError(f"{root} does not exist; give a folder of images, or 'digits' for the embedded set")
    if not root.is_dir():
        raise PetaliteError(f"{root} is a file; give a folder of images: {LAYOUT}")
    if is_tiny_imagenet(root):
        return open_tiny_imagenet(root, seed)
    places = _split_folders(root)
    if not places or set(places) == {"train"}:
        return _one_folder(root, places.get("train", root), seed)
    return _split_layout(root, places, seed)


def _one_folder(root: Path, place: Path, seed: int) -> ImageData:
    """Class folders in one place: all three splits are made."""
    images = images_by_class(place)
    check_classes(images, place)
    folders = tuple(images)
    splits, note = split_all(samples_of(images, folders), folders, seed)
    return ImageData(root.resolve().name, root, folders, class_names(root, folders), splits, (note,))


def _split_layout(root: Path, places: Mapping[str, Path], seed: int) -> ImageData:
    """`train` beside `valid`, `test` or both: at most one split is made, from train."""
    if "train" not in places:
        names = listed([place.name for place in places.values()])
        raise PetaliteError(f"{root} has {names} but no train folder; {LAYOUT}")
    images = {split: images_by_class(place) for split, place in places.items()}
    check_classes(images["train"], places["train"])
    folders = tuple(images["train"])
    splits: dict[str, tuple[Sample, ...]] = {}
    for split, place in places.items():
        check_same_classes(places["train"], set(folders), place, set(images[split]))
        splits[split] = samples_of(images[split], folders)
        if not splits[split]:
            raise PetaliteError(f"{place} has class folders but no images; add some or remove it")
    notes: list[str] = []
    if "test" not in splits:
        splits["test"] = splits.pop("valid")
        notes.append(f"no test folder: {places['valid'].name} is used as test")
    if "valid" not in splits:
        splits["train"], splits["valid"], note = carve_valid(splits["train"], folders, seed)
        notes.append(note)
    in_order = {split: splits[split] for split in SPLITS}
    return ImageData(root.resolve().name, root, folders, class_names(root, folders), in_order, tuple(notes))


def _split_folders(root: Path) -> dict[str, Path]:
    """Split -> the folder that is it by name, in any case."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise PetaliteError(f"{root} cannot be read: {error.strerror or error}") from error
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        for entry in entries:
            if entry.is_dir() and entry.name.lower() in names:
                if split in found:
                    raise PetaliteError(f"{root} has both {found[split].name} and {entry.name}; keep one of them")
                found[split] = root / entry.name
    return found
