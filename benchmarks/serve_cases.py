"""The cases of `serve_fuzz.py`: requests that no honest client sends, made from valid ones by chance.

case = KINDS["image"][0](random.Random(7), photos_of(folder))      # pieces to send, and how
"""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from serve_client import post

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_NAMES = (
    *(
        "../../../etc/passwd",
        "..\\..\\boot.ini",
        "/dev/zero",
        "file:///etc/passwd",
        "a\x00b.jpg",
        "%2e%2e%2fetc",
        "CON",
    ),
    *("$(reboot)", "'; DROP TABLE images; --", "x" * 4000, "\r\nx-injected: yes", "é" * 50, ".", "~root/.ssh/id_rsa"),
)
_PATHS = (
    *(
        "/../../etc/passwd",
        "/samples/../../etc/passwd",
        "/samples/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "//predict",
        "/predict/",
    ),
    *(
        "/v2/models/../../x/infer",
        "/v2/models/%00/infer",
        "/v2/models/" + "a" * 8000 + "/infer",
        "/predict?top_k=" + "9" * 900,
    ),
    *(
        "/predict?model=../../etc",
        "/predict?top_k[]=1",
        "/admin/reload",
        "/openapi.json%00",
        "/%ff%fe",
        "/predict?%ff=%ff",
    ),
)
_TYPES = (
    *(
        "text/html",
        "application/json",
        "application/json; charset=utf-7",
        "multipart/form-data",
        "image/svg+xml",
        "a/b/c",
    ),
    *("multipart/form-data; boundary=" + "b" * 400, "multipart/form-data; boundary=x", "", "\x7f", "video/mp4"),
    *("application/x-www-form-urlencoded", "application/octet-stream", "application/x-python-pickle"),
)


@dataclass
class Case:
    """kind; pieces: sent one after the other, with `pause_s` between; end: then the sending side is closed.

    cut_off: whether the server may end the connection without an answer, since there is no whole request.
    """

    kind: str
    pieces: list[bytes]
    pause_s: float = 0.0
    end: bool = False
    cut_off: bool = False


def photos_of(folder: Path, most: int = 40) -> list[bytes]:
    """Some photos of a folder, and images of every format made from the first."""
    files = sorted(folder.rglob("*.jpg"))
    if not files:
        raise SystemExit(f"no photos below {folder}")
    photos = [file.read_bytes() for file in files[:: max(1, len(files) // most)]]
    image = Image.open(io.BytesIO(photos[0])).convert("RGB").resize((160, 120))
    for name in _FORMATS:
        file = io.BytesIO()
        image.save(file, name)
        photos.append(file.getvalue())
    file = io.BytesIO()
    image.save(file, "JPEG", progressive=True, exif=image.getexif())
    return [*photos, file.getvalue()]


def mutated(chance: random.Random, data: bytes) -> bytes:
    """`data` with bits flipped, pieces cut, doubled, moved, or numbers made extreme; more often near the header."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        if not changed:
            break
        at = int(len(changed) * chance.random() ** chance.choice((1, 3, 8)))
        size = min(chance.choice((1, 2, 4, 8, 64, 1024)), len(changed) - at)
        action = chance.randrange(7)
        if action == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif action == 1:
            changed[at : at + size] = chance.randbytes(size)
        elif action == 2:
            del changed[at : at + size]
        elif action == 3:
            changed[at:at] = changed[at : at + size] * chance.choice((1, 2, 50))
        elif action == 4:
            changed[at : at + 4] = chance.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\1\0\0"))
        elif action == 5:
            del changed[at:]
        else:
            other = chance.randrange(len(changed))
            changed[at : at + size] = changed[other : other + size]
    return bytes(changed)


def image(chance: random.Random, photos: list[bytes]) -> Case:
    """A damaged image, sent in each of the ways there are."""
    data = mutated(chance, chance.choice(photos))
    text = base64.b64encode(data).decode()
    way = chance.randrange(5)
    if way == 0:
        return Case("image", [_form(data, chance.choice(_NAMES))])
    if way == 1:
        return Case("image", [post("/predict", json.dumps({"inputs": text}).encode(), "application/json")])
    if way == 2:
        return Case("image", [_infer([text])])
    return Case("image", [post("/predict", data)])


def bomb(chance: random.Random, photos: list[bytes]) -> Case:
    """A few bytes that would become very many pixels, or take very long."""
    kind = chance.randrange(7)
    if kind == 0:
        data = _png(chance.choice((60_000, 2**31 - 1, 100)), chance.choice((60_000, 2**31 - 1)))
    elif kind == 1:
        data = _png(7_000, 7_000, rows=40)  # within the limit, and cut off
    elif kind == 2:
        data = photos[-1] + chance.choice((b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 5_000, b"\xff\xda" * 90))
    elif kind == 3:
        data = b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0xF7, 0, 0) + bytes(800)
    elif kind == 4:
        canvas = (16_382).to_bytes(3, "little") * 2
        data = b"RIFF\0\0\1\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas + photos[0][:500]
    elif kind == 5:
        chunk = zlib.compress(bytes(50_000_000))
        data = _png(64, 64, rows=64, before=_chunk(b"iCCP", b"p\0\0" + chunk) + _chunk(b"zTXt", b"t\0\0" + chunk))
    else:
        value = "[" * chance.choice((10, 100_000)) if chance.random() < 0.5 else '{"inputs": ' + "9" * 100_000 + "}"
        return Case("bomb", [post("/predict", value.encode(), "application/json")])
    return Case("bomb", [post("/predict", data)])


def body(chance: random.Random, photos: list[bytes]) -> Case:
    """Wrong types and values around a valid image."""
    data = chance.choice(photos)
    text = base64.b64encode(data).decode()
    odd: list[Any] = [None, True, -1, 0, 1.5, 10**30, "", "5", [], {}, [[]], "\ud800", {"top_k": {}}, 2**63]
    way = chance.randrange(6)
    if way == 0:
        return Case("body", [post("/predict", data, chance.choice(_TYPES))])
    if way == 1:
        value = {
            "inputs": chance.choice([text, *odd]),
            "parameters": chance.choice([*odd, {"top_k": chance.choice(odd)}]),
        }
        return Case("body", [post("/predict", json.dumps(value).encode(), "application/json")])
    if way == 2:
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
        tensor[chance.choice([*tensor, "parameters"])] = chance.choice(odd)
        value = {"inputs": [tensor], chance.choice(("id", "outputs", "parameters")): chance.choice(odd)}
        return Case("body", [post(_INFER, json.dumps(value).encode(), "application/json")])
    if way == 3:
        return Case("body", [_form(data, chance.choice(_NAMES), mutate=chance)])
    if way == 4:
        value = mutated(chance, json.dumps({"inputs": text, "parameters": {"top_k": 3}}).encode())
        return Case("body", [post("/predict", value, "application/json")])
    length = chance.choice(("0", "9" * 30, "-1", "x", "12"))
    head, _, rest = _infer([text]).partition(b"\r\n")
    return Case("body", [head + b"\r\ninference-header-content-length: " + length.encode() + b"\r\n" + rest])


def path(chance: random.Random, photos: list[bytes]) -> Case:
    """Addresses that try to get somewhere else."""
    address = chance.choice(_PATHS)
    if chance.random() < 0.5:
        return Case("path", [post(address, chance.choice(photos))])
    method = chance.choice(("GET", "DELETE", "PUT", "OPTIONS", "PATCH", "TRACE"))
    return Case("path", [f"{method} {address} HTTP/1.1\r\nhost: x\r\n\r\n".encode()])


def headers(chance: random.Random, photos: list[bytes]) -> Case:
    """Huge, many, broken and contradictory headers; a request line that is none."""
    request = post("/predict", chance.choice(photos))
    head, _, rest = request.partition(b"\r\n")
    extra = chance.choice(
        (
            b"x-a: " + b"a" * chance.choice((1_000, 100_000, 1_000_000)) + b"\r\n",
            b"".join(b"x-%d: a\r\n" % number for number in range(chance.choice((50, 5_000)))),
            b"content-length: 7\r\n",
            b"transfer-encoding: chunked\r\n",
            b"expect: 100-continue\r\n",
            b"connection: upgrade\r\nupgrade: websocket\r\n",
            b"authorization: Bearer " + chance.randbytes(20).hex().encode() + b"\r\n",
            b"no colon at all\r\n",
            b"x-\0: y\r\n",
            b"content-encoding: gzip\r\n",
        )
    )
    return Case("headers", [head + b"\r\n" + extra + rest], cut_off=True)


def nonsense(chance: random.Random, photos: list[bytes]) -> Case:
    """Bytes that are no HTTP, or were until they were changed."""
    data = chance.randbytes(chance.choice((1, 100, 5_000)))
    if chance.random() < 0.7:
        request = post("/predict", chance.choice(photos))
        cut = request.index(b"\r\n\r\n") + 4
        data = mutated(chance, request[:cut]) + request[cut:]
    return Case("nonsense", [data], end=True, cut_off=True)


def cut_off(chance: random.Random, photos: list[bytes]) -> Case:
    """A body that ends before it should, with the connection closed."""
    request = post("/predict", chance.choice(photos))
    return Case("cut_off", [request[: chance.randrange(1, len(request))]], end=True, cut_off=True)


def slow(chance: random.Random, photos: list[bytes]) -> Case:
    """A request that dribbles, or stops in the middle and stays."""
    request = post("/predict", chance.choice(photos))
    start = chance.choice((10, 60, request.index(b"\r\n\r\n") + 4, 500))
    if chance.random() < 0.5:
        return Case("slow", [request[:start]], cut_off=True)
    return Case(
        "slow", [request[:start], *(request[start + at : start + at + 1] for at in range(60))], 0.1, cut_off=True
    )


#: Kind -> how a case is made, and how often.
KINDS: dict[str, tuple[Callable[[random.Random, list[bytes]], Case], float]] = {
    "image": (image, 0.70),
    "body": (body, 0.12),
    "bomb": (bomb, 0.02),
    "path": (path, 0.05),
    "headers": (headers, 0.04),
    "nonsense": (nonsense, 0.04),
    "cut_off": (cut_off, 0.025),
    "slow": (slow, 0.003),
}
#: The name that the model is served under.
MODEL = "m"
_INFER = f"/v2/models/{MODEL}/infer"


def _infer(images: list[str]) -> bytes:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": images}
    return post(_INFER, json.dumps({"inputs": [tensor]}).encode(), "application/json")


def _form(data: bytes, name: str, mutate: random.Random | None = None) -> bytes:
    head = f'--B\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    text = head + data + b"\r\n--B--\r\n"
    return post("/predict", mutated(mutate, text) if mutate else text, "multipart/form-data; boundary=B")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, rows: int = 1, before: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    content = zlib.compress(bytes(rows * (3 * min(width, 10_000) + 1)))
    return b"\x89PNG\r\n\x1a\n" + header + before + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")
