"""A stranger's bytes -> a model's input, with the limits looked at before anything is decoded.

pixels = read_pixels(body, classifier.preprocess, max_pixels=50_000_000)     # uint8, (3, H, W)

The image is decoded by `petalite.data.images.decode`, as everywhere else. In front of it stands what a server needs and a
person's own files do not: a list of formats (others start programs, or have decoders with a history), the size out of
the header, and a limit on the passes of a progressive JPEG, of which each costs the whole image.
"""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from petalite.data.images import ImageError, decode
from petalite.serve.refusal import Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from petalite.data.preprocess import Preprocess

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
#: Scans of a JPEG: encoders write about ten; a file of a few kB can hold thousands.
MAX_SCANS = 100
_SCAN = b"\xff\xda"


def read_pixels(data: bytes, preprocess: Preprocess, max_pixels: int) -> Tensor:
    """Encoded image -> uint8 (3, H, W). Raises Refusal with 413, 415 or 422."""
    if not data:
        raise Refusal(422, "invalid_request", "the image is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=_readable())
    except UnidentifiedImageError:
        raise Refusal(415, "unsupported_media", f"not an image of a known format ({', '.join(_readable())})") from None
    except Image.DecompressionBombError:
        raise _too_large("more pixels than any camera makes", max_pixels) from None
    except Exception as error:  # damaged headers end in any kind of error
        raise Refusal(422, "damaged_image", f"the image is damaged: {_line(error)}") from None
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise _too_large(f"{width:,} x {height:,} pixels", max_pixels)
        if image.format in ("JPEG", "MPO") and (scans := data.count(_SCAN)) > MAX_SCANS:
            raise Refusal(422, "damaged_image", f"a JPEG of {scans:,} scans; at most {MAX_SCANS} are read")
        try:
            return preprocess(decode(image))
        except ImageError as error:
            raise Refusal(422, "damaged_image", str(error)) from None
        except (ValueError, MemoryError, OverflowError, ZeroDivisionError) as error:
            # a few pixels wide and very long: there is nothing left of it at the model's size
            raise Refusal(422, "damaged_image", f"the image cannot be scaled: {_line(error)}") from None


@cache
def _readable() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _too_large(size: str, max_pixels: int) -> Refusal:
    return Refusal(413, "image_too_large", f"the image has {size}, the limit is {max_pixels:,} pixels; make it smaller")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
