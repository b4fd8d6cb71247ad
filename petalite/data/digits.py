"""The embedded data set: scikit-learn's 1,797 handwritten digits as image files, so that a first run needs no network.

    open_data("digits").splits["test"]       # 360 samples

They are 8 x 8 grey levels (E. Alpaydin, C. Kaynak, UCI 1998), enlarged to 32 x 32 PNGs and written once to the cache.
"""

from __future__ import annotations

from pathlib import Path

from petalite.files import atomic_folder, cache_dir

SIDE = 32


def digits_folder() -> Path:
    """The folder `train|valid|test/0..9/*.png` of 1,077, 360 and 360 images, made on the first call (a second)."""
    folder = cache_dir() / "digits"
    if not folder.is_dir():
        with atomic_folder(folder) as temporary:
            _write(temporary)
    return folder


def _write(folder: Path) -> None:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, targets = load_digits(return_X_y=True)  # (1797, 64) of 0..16
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    rest, test = train_test_split(np.arange(len(targets)), test_size=360, stratify=targets, random_state=0)
    train, valid = train_test_split(rest, test_size=360, stratify=targets[rest], random_state=0)
    for split, indices in (("train", train), ("valid", valid), ("test", test)):
        for digit in range(10):
            (folder / split / str(digit)).mkdir(parents=True)
        for index in sorted(indices.tolist()):
            image = Image.fromarray(pixels[index]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            # stored, not compressed: the same bytes, and so the same fingerprint, with every zlib
            image.save(folder / split / str(targets[index]) / f"digit_{index:04d}.png", compress_level=0)
