"""The page at `/` and the documentation at `/docs`: HTML that needs nothing from anywhere else.

page = Page.read(samples=Path("photos"))
page.html, page.headers

Style and script are written into the HTML; the headers let a browser run exactly those (by their hash) and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petalite.errors import PetaliteError

_FOLDER = Path(__file__).parent / "page_files"
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif")
_MOST_SAMPLES = 8
_LARGEST_SAMPLE = 5_000_000
#: Photos that scikit-learn brings along, both CC BY 2.0.
_BUNDLED = {"flower.jpg": "A flower, by vultilion (CC BY 2.0)", "china.jpg": "A palace, by danielbuechele (CC BY 2.0)"}


@dataclass(frozen=True)
class Sample:
    """An image that the page offers."""

    about: dict[str, str]
    media_type: str
    data: bytes


@dataclass(frozen=True)
class Page:
    """The page, the headers that go with it, and its samples."""

    html: bytes
    headers: dict[str, str]
    samples: tuple[Sample, ...]

    @classmethod
    def read(cls, samples: Path | None) -> Page:
        """The page with the images of a folder (the first eight), or with photos that scikit-learn brings along."""
        style, script = (_FOLDER / "page.css").read_text(), (_FOLDER / "page.js").read_text()
        html = (_FOLDER / "page.html").read_text()
        html = html.replace("/* page.css */", style).replace("/* page.js */", script)
        return cls(html.encode(), _headers(style, script), tuple(_samples(samples)))


def render_docs(document: Mapping[str, Any]) -> bytes:
    """The OpenAPI document as a page for people."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    template = environment.get_template("docs.html")
    style = (_FOLDER / "page.css").read_text()
    return template.render(api=document, style=style, rows=_operations(document)).encode()


def _operations(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "method": method.upper(),
            "path": path,
            "text": operation.get("description", ""),
            "parameters": [
                (parameter["name"], parameter["in"], parameter.get("description", ""))
                for parameter in operation.get("parameters", [])
            ],
            "bodies": list(operation.get("requestBody", {}).get("content", {})),
            "answers": [(status, found["description"]) for status, found in operation["responses"].items()],
        }
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def _headers(style: str, script: str) -> dict[str, str]:
    policy = (
        f"default-src 'none'; style-src {_hash(style)} 'unsafe-hashes'; script-src {_hash(script)}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _samples(folder: Path | None) -> list[Sample]:
    if folder is None:
        found = importlib.util.find_spec("sklearn")
        images = Path(found.origin).parent / "datasets" / "images" if found and found.origin else None
        chosen = [(images / name, about) for name, about in _BUNDLED.items() if images and (images / name).is_file()]
    else:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _ENDINGS and file.is_file())
        if not files:
            raise PetaliteError(f"--samples: {folder} holds no images ({', '.join(_ENDINGS)})")
        small = [file for file in files if file.stat().st_size <= _LARGEST_SAMPLE]
        chosen = [(file, file.stem.replace("_", " ")) for file in small[:_MOST_SAMPLES]]
    return [
        Sample({"name": about}, mimetypes.guess_type(file.name)[0] or "application/octet-stream", file.read_bytes())
        for file, about in chosen
    ]
