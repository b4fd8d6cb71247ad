"""Photos made small enough to live inside a page or a picture.

    thumbnail(find("31/image_08067.jpg", roots))      # a PIL image, or None when it is gone or damaged
    data_uri(image)                                    # "data:image/jpeg;base64,…", about 8 kB

A photo that cannot be shown is never a reason to lose a report: the caller shows a blank in its place.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from petalite.errors import PetaliteError

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 224  # pixels; twice what a phone gives a photo in two columns
QUALITY = 78
#: Smaller images than this are digits or icons: enlarged in blocks, since smoothing would only blur them.
TINY = 48


def find(path: str, roots: Sequence[Path] = ()) -> Path | None:
    """The file at `path`, taken as it is or under one of `roots`; None when it is at none of these places."""
    if not path or "\0" in path:
        return None
    for candidate in (Path(path), *(root / path for root in roots)):
        try:
            if candidate.is_file():
                return candidate
        except OSError:  # a name too long for this file system is a file that is not here
            continue
    return None


def thumbnail(path: Path | None, side: int = SIDE) -> Image | None:
    """The middle square of a photo, `side` x `side` RGB pixels; None when it cannot be read."""
    from PIL import Image, ImageOps

    from petalite.data.images import decode

    if path is None:
        return None
    try:
        image = decode(path)
    except PetaliteError:
        return None
    method = Image.Resampling.NEAREST if max(image.size) <= TINY else Image.Resampling.LANCZOS
    return ImageOps.fit(image, (side, side), method=method)


def data_uri(image: Image) -> str:
    """`image` as a JPEG inside a `data:` address."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def png_uri(path: Path) -> str:
    """A PNG file inside a `data:` address."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
