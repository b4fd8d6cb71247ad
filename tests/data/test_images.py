"""Every kind of image comes out as upright RGB, and a bad one is one line that names it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from petalite.data import ImageError, decode
from petalite.errors import PetaliteError

Noise = Callable[..., Image.Image]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def huge_png() -> bytes:
    """A PNG whose header promises 30,000 x 30,000 pixels and that holds almost none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def test_path_bytes_image_and_array_give_the_same_pixels(noise: Noise, tmp_path: Path) -> None:
    image = noise(20, 30)
    path = tmp_path / "photo.png"
    image.save(path)
    for source in (path, str(path), path.read_bytes(), image, np.asarray(image)):
        assert np.array_equal(pixels(decode(source)), np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_rotation_is_applied(noise: Noise, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(noise(20, 30), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(pixels(decode(content)), np.asarray(expected))
    assert decode(content).size == ((30, 20) if orientation < 5 else (20, 30))


def test_a_damaged_exif_block_does_not_spoil_the_photo(noise: Noise) -> None:
    content = encoded(noise(20, 30), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert decode(content).size == (30, 20)


def test_cmyk_follows_pil(noise: Noise) -> None:
    content = encoded(noise(20, 30).convert("CMYK"), "JPEG")
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(pixels(decode(content)), np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA"])
def test_grey_and_alpha_follow_pil(noise: Noise, mode: str) -> None:
    image = noise(20, 30).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(noise(20, 30, seed=1).convert("L"))
    assert np.array_equal(pixels(decode(encoded(image, "PNG"))), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(256))])
def test_palette_with_and_without_transparency(noise: Noise, transparency: int | bytes | None) -> None:
    image = noise(20, 30).quantize(256)
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(pixels(decode(encoded(image, "PNG", **options))), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65_535, 256).round().astype(np.uint16).reshape(16, 16)
    found = pixels(decode(encoded(Image.fromarray(ramp), kind)))
    assert np.array_equal(found[..., 0], np.arange(256).reshape(16, 16))


def test_thirty_two_bit_grey_is_scaled_too() -> None:
    ramp = (np.arange(256, dtype=np.int32) << 23).reshape(16, 16)
    assert np.array_equal(
        pixels(decode(encoded(Image.fromarray(ramp), "TIFF")))[..., 0], np.arange(256).reshape(16, 16)
    )


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match="floating-point pixels, whose range is unknown; save it with 8 or 16 bits"):
        decode(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert (pixels(decode(content)) == (255, 0, 0)).all()


def test_the_image_given_is_left_alone(noise: Noise) -> None:
    image = noise(4, 4)
    decode(image).putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(image), np.asarray(noise(4, 4)))


def test_large_images_below_the_limit_are_read_without_a_warning(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # PIL now warns of 600 pixels, as it would of 100 million
    assert decode(encoded(noise(20, 30), "PNG")).size == (30, 20)


def test_the_limit_also_holds_where_pil_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match="the image is too large: 30,000 x 30,000 pixels, the limit is 178,956,970"):
        decode(huge_png())


# --- bad input: the file's name, what is wrong, one line -----------------------------------------------------------

JPEG = encoded(Image.radial_gradient("L"), "JPEG")
BAD_FILES = {
    "text.jpg": (
        b"These are not the pixels you are looking for.\n" * 20,
        "is not an image of a known format (it holds text)",
    ),
    "page.jpg": ("<html>\n<p>é".encode() * 60, "is not an image of a known format (it holds text)"),
    "bytes.png": (bytes(range(256)), "is not an image of a known format, or its first bytes are damaged"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "is damaged: "),
    "stub.jpg": (JPEG[:40], "is damaged: "),
    "truncated.png": (encoded(Image.radial_gradient("L"), "PNG")[:900], "is damaged: "),
    "empty.jpg": (b"", "is empty (0 bytes)"),
    "huge.png": (huge_png(), "is too large: 900,000,000 pixels, the limit is 178,956,970 pixels; make it smaller"),
    "phone.heic": (
        b"\0\0\0\x18ftypheic" + bytes(50),
        "is not an image of a known format (it is HEIC; convert it to JPEG)",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    content, complaint = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        decode(path)
    message = str(caught.value)
    assert message.startswith(f"{path} {complaint}")
    assert "\n" not in message
    assert isinstance(caught.value, PetaliteError) and caught.value.exit_code == 2
    with pytest.raises(ImageError) as caught:
        decode(content)
    assert str(caught.value).startswith(f"the image {complaint}")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.jpg does not exist$"):
        decode(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match=r"is a folder, not an image$"):
        decode(tmp_path)
    with pytest.raises(ImageError, match=r"cannot be read: File name too long$"):
        decode("x" * 5000)


def test_a_lazily_opened_image_that_is_truncated() -> None:
    with pytest.raises(ImageError, match="the image is damaged"):
        decode(Image.open(io.BytesIO(JPEG[: len(JPEG) // 2])))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((3, 4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)],
    ids=str,
)
def test_an_array_that_is_no_image(array: np.ndarray) -> None:
    with pytest.raises(
        ImageError, match=r"is not an image; give uint8 of shape \(height, width, 3\) or \(height, width\)"
    ):
        decode(array)


def test_something_else_is_refused() -> None:
    with pytest.raises(ImageError, match="an image is a path, bytes, a PIL image or a uint8 array, not int"):
        decode(3)  # type: ignore[arg-type]
