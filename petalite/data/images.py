"""Any image a person may have -> an upright RGB image: the one door through which pixels come in.

Training, evaluation, prediction and serving all read their images here, so that no two of them can differ.

    image = decode("photo.jpg")          # also bytes, a PIL image or a uint8 array
    image.size                           # (width, height) after the EXIF rotation

What becomes of the less usual ones: EXIF rotation is applied; CMYK, palette and grey become RGB; transparency is
dropped as `PIL.Image.convert("RGB")` drops it (the colour stored under it shows: what torchvision and timm do too);
16-bit grey is scaled to 8 bits, where PIL would clip it to white; of an animation the first frame is taken.
"""

from __future__ import annotations

import codecs
import io
import re
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from petalite.errors import PetaliteError

ImageSource: TypeAlias = "str | Path | bytes | Image.Image | np.ndarray"

# twice PIL's own threshold for a warning, which is where PIL itself refuses
PIXEL_LIMIT = 178_956_970

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(PetaliteError):
    """An image that cannot be read; the message is one line that names it and says what is wrong."""


def decode(source: ImageSource) -> Image.Image:
    """The image in `source` as upright RGB, 8 bits a channel.

    `source`: a path, an encoded file's bytes, a PIL image, or a uint8 array of shape (H, W, 3) or (H, W).
    Raises ImageError when it is missing, empty, damaged, not an image, or larger than 178,956,970 pixels (which is
    read from the header, before anything is decoded).
    """
    name = str(source) if isinstance(source, (str, Path)) else "the image"
    try:
        # the outcome is an image or an ImageError; what PIL has to say on the way (a size between half the limit and
        # the limit, a damaged EXIF block) is neither
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module=r"PIL\.")
            if isinstance(source, np.ndarray):
                return _from_array(source)
            if isinstance(source, Image.Image):
                return _rgb(source, name)
            with Image.open(_file(source, name)) as image:
                return _rgb(image, name)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image of a known format{_looks_like(source)}") from None
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise _too_large(name, f"{int(pixels[0]):,} pixels" if pixels else "its size") from None
    except Exception as error:  # a decoder meets damaged bytes with whatever it stumbles over: any of it means damage
        system = error.strerror if isinstance(error, OSError) and error.errno else None
        why = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name} cannot be read: {system}" if system else f"{name} is damaged: {why}") from error


def _file(source: str | Path | bytes, name: str) -> Path | io.BytesIO:
    """What PIL can open; ImageError when there is nothing in it."""
    if isinstance(source, bytes):
        size = len(source)
    elif not isinstance(source, (str, Path)):
        raise ImageError(f"an image is a path, bytes, a PIL image or a uint8 array, not {type(source).__name__}")
    else:
        try:
            if Path(source).is_dir():
                raise ImageError(f"{name} is a folder, not an image")
            size = Path(source).stat().st_size
        except FileNotFoundError:
            raise ImageError(f"{name} does not exist") from None
    if size == 0:
        raise ImageError(f"{name} is empty (0 bytes)")
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise ImageError(
            f"an array of {array.dtype} and shape {array.shape} is not an image; "
            "give uint8 of shape (height, width, 3) or (height, width)"
        )
    if array.shape[0] * array.shape[1] > PIXEL_LIMIT:
        raise _too_large("the array", f"{array.shape[1]:,} x {array.shape[0]:,} pixels")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """`image` upright and in RGB; a new image, never the one given."""
    width, height = image.size
    if width * height > PIXEL_LIMIT:
        raise _too_large(name, f"{width:,} x {height:,} pixels")
    if not width * height:
        raise ImageError(f"{name} has no pixels ({width} x {height})")
    image.load()
    turn = _UPRIGHT.get(_orientation(image))  # asked after load(), which already turns a TIFF
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    elif image.mode == "F":
        raise ImageError(f"{name} holds floating-point pixels, whose range is unknown; save it with 8 or 16 bits")
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL asks for this step where a palette has transparency
    if image.mode != "RGB":
        image = image.convert("RGB")
    else:
        image = image.copy()
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) when there is none or the EXIF block is damaged: the pixels are still good."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # as with pixels, a damaged block ends in any kind of error
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 0..255; 32-bit grey is taken for 16-bit unless it holds more, as older PNG readers did."""
    values = np.asarray(image)
    if image.mode == "I" and values.max() > 65_535:
        return Image.fromarray((values.clip(min=0) >> 23).astype(np.uint8))
    return Image.fromarray(((values.clip(min=0).astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8))


def _too_large(name: str, size: str) -> ImageError:
    return ImageError(f"{name} is too large: {size}, the limit is {PIXEL_LIMIT:,} pixels; make it smaller")


def _looks_like(source: ImageSource) -> str:
    """A hint at what a file is that no decoder knows."""
    head = source[:512] if isinstance(source, bytes) else b""
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as file:
            head = file.read(512)
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return " (it is HEIC; convert it to JPEG)"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut in half
    except UnicodeDecodeError:
        text = "\0"
    is_text = all(character.isprintable() or character in "\r\n\t" for character in text)
    return " (it holds text)" if is_text else ", or its first bytes are damaged"
