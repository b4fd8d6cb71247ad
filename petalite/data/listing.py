"""The files of a folder of class folders, and what may be wrong with it.

    images = images_by_class(Path("flowers102/train"))        # {"1": [Path(...), ...], "10": [...], ...}
    check_classes(images, Path("flowers102/train"))

Every complaint is one line that names the folder and what it should hold.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from petalite.data.samples import Sample, listed
from petalite.errors import PetaliteError

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga", ".ico"),
)
LAYOUT = "expected train/CLASS/*.jpg (with valid/ and test/ beside train/), or CLASS/*.jpg"


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image: by its extension, in any case; hidden files are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def images_by_class(folder: Path) -> dict[str, list[Path]]:
    """Class folder -> its image files, sorted; files deeper in a class folder count, hidden ones do not.

    Raises PetaliteError when there are no class folders or the folder cannot be read.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise PetaliteError(f"{folder} cannot be read: {error.strerror or error}") from error
    names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if not names:
        flat = sum(is_image(entry.name) for entry in entries)
        held = f"holds {flat} images but no class folders" if flat else "has no images"
        raise PetaliteError(f"{folder} {held}; {LAYOUT}")
    return {name: _images_under(folder / name) for name in names}


def check_classes(images: Mapping[str, Sequence[Path]], folder: Path) -> None:
    """Raise PetaliteError unless there are two classes or more, each with images."""
    empty = [name for name, paths in images.items() if not paths]
    if len(empty) == len(images):
        raise PetaliteError(f"{folder} has no images, only the folders {listed(empty)}; {LAYOUT}")
    if empty:
        raise PetaliteError(f"{folder} has no images in the class folder {listed(empty)}; add some or remove it")
    if len(images) < 2:
        raise PetaliteError(f"{folder} has one class only ({next(iter(images))}); a classifier needs two or more")


def check_same_classes(main: Path, expected: set[str], other: Path, present: set[str]) -> None:
    """Raise PetaliteError, naming a few that differ, unless two splits have the same class folders."""
    lacks = [
        f"{folder.name} lacks {listed(sorted(missing))}"
        for folder, missing in ((other, expected - present), (main, present - expected))
        if missing
    ]
    if lacks:
        raise PetaliteError(f"the classes of {main} and {other} differ: {'; '.join(lacks)}; make them the same")


def samples_of(images: Mapping[str, Sequence[Path]], folders: Sequence[str]) -> tuple[Sample, ...]:
    """Samples in the order of `folders`, files sorted within a class."""
    return tuple(Sample(path, target) for target, name in enumerate(folders) for path in images[name])


def _images_under(folder: Path) -> list[Path]:
    paths: list[Path] = []
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        paths += [Path(place, name) for name in files if is_image(name)]
    return sorted(paths)
