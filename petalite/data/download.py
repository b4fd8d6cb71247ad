"""Getting a file from the network whole: with a bar, going on where it was cut off, and checked before it is used.

    download("https://www.robots.ox.ac.uk/~vgg/data/flowers/102/setid.mat", folder / "setid.mat", md5="a5357…")
    unpack(folder / "102flowers.tgz", folder)

A file under its final name is complete and has the right checksum; until then it is called `NAME.part`.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from petalite.console import track
from petalite.errors import PetaliteError

_CHUNK = 1 << 20
_TIMEOUT_S = 30


def download(url: str, path: Path, md5: str) -> Path:
    """Fetch `url` to `path`, unless it is there already; a `.part` of an earlier try is continued.

    Raises PetaliteError without network, when the server refuses or cuts the transfer off, when the file cannot be
    written, and when the checksum differs (naming both; what was fetched is then removed).
    """
    if path.is_file() and _md5(path) == md5:
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (part.is_file() and _md5(part) == md5):
            _fetch(url, part)
    except urllib.error.HTTPError as error:
        raise PetaliteError(
            f"{url} answers {error.code} {error.reason}; try again later or give another mirror"
        ) from error
    except urllib.error.URLError as error:
        raise PetaliteError(
            f"no network: {urlsplit(url).netloc} cannot be reached ({error.reason}); connect and run again"
        ) from error
    except ValueError as error:
        raise PetaliteError(f"{url} is not a web address ({error}); a mirror begins with https://") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        done = part.stat().st_size if part.is_file() else 0
        raise PetaliteError(
            f"{url} was cut off after {done:,} bytes ({error}); run again to go on from there"
        ) from error
    except OSError as error:
        raise PetaliteError(f"cannot write {part}: {error.strerror or error}") from error
    found = _md5(part)
    if found != md5:
        part.unlink()
        raise PetaliteError(
            f"{url} has the wrong checksum: expected md5 {md5}, found {found}; run again, or use another mirror"
        )
    return part.replace(path)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive of files and folders; members that would leave `folder`, links and devices are refused.

    Raises PetaliteError when the archive is damaged or holds such a member, or the disk is full.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                _unpack(tar, member, folder)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise PetaliteError(f"{archive} cannot be unpacked: {' '.join(str(error).split())}") from error


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """What `extractall(filter="data")` does from Python 3.11.4 on, for files and folders."""
    path = folder / member.name.lstrip("/")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise tarfile.TarError(f"{member.name} would lie outside of {folder}")
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    source = tar.extractfile(member) if member.isfile() else None
    if source is None:
        raise tarfile.TarError(f"{member.name} is neither a file nor a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with source, path.open("wb") as file:
        shutil.copyfileobj(source, file)


def _fetch(url: str, part: Path) -> None:
    """Write `url` to `part`, from the end of what is there when the server can do that."""
    start = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "petalite"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # more was written than the file has: begin again
        return _fetch(url, part)
    with response, part.open("ab" if response.status == http.client.PARTIAL_CONTENT else "wb") as file:
        expected = int(response.headers.get("Content-Length") or 0)
        chunks = -(-expected // _CHUNK) or None
        written = 0
        for chunk in track(_chunks(response), f"{part.stem} (MB)", total=chunks):
            written += file.write(chunk)
    if written < expected:
        raise http.client.IncompleteRead(b"", expected - written)
    return None


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while chunk := response.read(_CHUNK):
        yield chunk


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
