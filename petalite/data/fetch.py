"""Real data sets from where they are published, into the layout that `open_data` reads.

    folder = fetch("flowers102", Path("flowers102"))
    open_data(folder)

Oxford Flowers-102 (Nilsback & Zisserman, ICVGIP 2008): 8,189 photos of 102 flowers. "official" takes the authors'
archives and their split (1,020 train, 1,020 valid, 6,149 test); "kaggle" takes the split of the PyTorch Challenge
(6,552, 818, 819) with the person's Kaggle account. A fetch that was interrupted goes on when it is run again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from petalite.console import say
from petalite.data.download import download, unpack
from petalite.errors import PetaliteError, did_you_mean
from petalite.files import write_json

DATASETS = ("flowers102",)
SOURCES = ("official", "kaggle")
FLOWERS_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
FLOWERS_MD5 = {
    "102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
    "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
    "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
}
FLOWERS_KAGGLE = "nunenuh/pytorch-challange-flower-dataset"
_SPLIT_KEYS = {"train": "trnid", "valid": "valid", "test": "tstid"}
_DONE = "cat_to_name.json"  # written last
_DOWNLOADS = ".downloads"


def fetch(name: str, out: Path, source: str = "official", mirror: str | None = None) -> Path:
    """Fetch the data set `name` into the folder `out`, and return it. Raises PetaliteError for an unknown name."""
    if name not in DATASETS:
        raise PetaliteError(f"unknown data set '{name}'{did_you_mean(name, DATASETS)}; known: {', '.join(DATASETS)}")
    return fetch_flowers102(out, source, mirror)


def fetch_flowers102(out: Path, source: str = "official", mirror: str | None = None) -> Path:
    """Oxford Flowers-102 as `out/train|valid|test/LABEL/image_XXXXX.jpg` with `cat_to_name.json`.

    `source`: "official" or "kaggle". `mirror`: a base URL that has the official files under their names.
    Nothing is done when `out` is already complete. Raises PetaliteError when `out` holds something else, without
    network, on a wrong checksum, and for "kaggle" without kagglehub or credentials.
    """
    out = Path(out)
    if source not in SOURCES:
        raise PetaliteError(f"unknown source '{source}'{did_you_mean(source, SOURCES)}; known: {', '.join(SOURCES)}")
    if (out / _DONE).is_file() and all((out / split).is_dir() for split in _SPLIT_KEYS):
        say(f"{out} is already there")
        return out
    downloads = out / _DOWNLOADS
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not downloads.is_dir())):
        raise PetaliteError(f"{out} is not empty and not an unfinished fetch; give another folder")
    base = (mirror or FLOWERS_URL).rstrip("/") + "/"
    arranged = downloads / "arranged"
    shutil.rmtree(arranged, ignore_errors=True)  # of a run that was interrupted
    if source == "official":
        _official(base, downloads, arranged)
    else:
        _kaggle(base, downloads, arranged)
    for split in _SPLIT_KEYS:
        shutil.rmtree(out / split, ignore_errors=True)  # of a run that was interrupted during these renames
        (arranged / split).replace(out / split)
    write_json(out / _DONE, _flower_names())
    shutil.rmtree(downloads, ignore_errors=True)
    return out


def _official(base: str, downloads: Path, arranged: Path) -> None:
    """Download, unpack, and move each photo to its split and label."""
    for name, md5 in FLOWERS_MD5.items():
        download(base + name, downloads / name, md5)
    unpack(downloads / "102flowers.tgz", downloads)
    labels = _labels(downloads / "imagelabels.mat")
    from scipy.io import loadmat

    split_ids = loadmat(downloads / "setid.mat", squeeze_me=True)
    for split, key in _SPLIT_KEYS.items():
        for number in split_ids[key].tolist():
            name = f"image_{number:05d}.jpg"
            place = arranged / split / str(labels[number])
            place.mkdir(parents=True, exist_ok=True)
            (downloads / "jpg" / name).replace(place / name)


def _kaggle(base: str, downloads: Path, arranged: Path) -> None:
    """Get Kaggle's copy and sort it; its test photos carry no labels, the official label file has them by number."""
    found = _kaggle_folder()
    download(base + "imagelabels.mat", downloads / "imagelabels.mat", FLOWERS_MD5["imagelabels.mat"])
    labels = _labels(downloads / "imagelabels.mat")
    for split in _SPLIT_KEYS:
        _copy_sorted((found / split).rglob("image_[0-9][0-9][0-9][0-9][0-9].jpg"), labels, arranged / split)


def _copy_sorted(photos: Iterable[Path], labels: dict[int, int], place: Path) -> None:
    """Copy photos to `place/LABEL/`: the label is their class folder, else the official one of their number."""
    for photo in photos:
        sorted_already = photo.parent.name.isdecimal()
        label = photo.parent.name if sorted_already else str(labels[int(photo.stem.removeprefix("image_"))])
        (place / label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, place / label / photo.name)


def _kaggle_folder() -> Path:
    """The folder with train, valid and test in what kagglehub downloads."""
    try:
        import kagglehub
    except ImportError:
        raise PetaliteError(
            "kagglehub is not installed; run: pip install 'petalite[fetch]', or use the official source"
        ) from None
    try:
        downloaded = Path(kagglehub.dataset_download(FLOWERS_KAGGLE))
    except Exception as error:  # kagglehub lets the errors of several HTTP libraries through
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise PetaliteError(
            f"Kaggle did not give the data set ({why}); check the network and your credentials "
            "(~/.kaggle/kaggle.json, or KAGGLE_USERNAME and KAGGLE_KEY), or use the official source"
        ) from error
    for folder in [downloaded, *sorted(path for path in downloaded.glob("*/") if path.is_dir())]:
        if all((folder / split).is_dir() for split in _SPLIT_KEYS):
            return folder
    raise PetaliteError(f"{downloaded} has no train, valid and test folders; use the official source")


def _labels(path: Path) -> dict[int, int]:
    """Photo number (1..8189) -> label (1..102)."""
    from scipy.io import loadmat

    return dict(enumerate(loadmat(path, squeeze_me=True)["labels"].tolist(), start=1))


def _flower_names() -> dict[str, str]:
    """Label -> name of the flower."""
    from torchvision.datasets import Flowers102

    return {str(label): name.rstrip("?") for label, name in enumerate(Flowers102.classes, start=1)}
