"""Images in, batches out: folders, splits, class names, checks, the one preprocessing and the embedded digits.

    data = open_data("digits")
    for batch in load_batches([s.path for s in data.splits["test"]], preprocess, batch_size=64): ...

Nothing here knows of models: a batch is uint8 pixels, and its normalization belongs to the device that computes.
"""

from petalite.data.augment import Augment
from petalite.data.check import DataReport, check_data
from petalite.data.digits import digits_folder
from petalite.data.folder import ImageData, Sample, open_data
from petalite.data.images import ImageError, decode
from petalite.data.loader import Batch, load_batches, train_batches
from petalite.data.preprocess import Preprocess

__all__ = [
    "Augment",
    "Batch",
    "DataReport",
    "ImageData",
    "ImageError",
    "Preprocess",
    "Sample",
    "check_data",
    "decode",
    "digits_folder",
    "load_batches",
    "open_data",
    "train_batches",
]
