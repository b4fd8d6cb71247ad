"""Fetching, against a small local server that holds tiny archives in the shape of the real ones."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import re
import sys
import tarfile
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from petalite.data import open_data
from petalite.data.download import download, unpack
from petalite.data.fetch import fetch, fetch_flowers102
from petalite.errors import PetaliteError

MakeImage = Callable[..., Path]
#: photo number - 1 -> label
LABELS = [1, 1, 1, 2, 2, 2, 10, 10, 10]
SPLIT_IDS = {"trnid": [1, 4, 7], "valid": [2, 5, 8], "tstid": [3, 6, 9]}


class Server:
    """Files by name over HTTP, with ranges; `cut` ends a transfer after that many bytes, `asked` logs requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.cut: int | None = None
        self.ranges = True
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rsplit("/", 1)[-1]
                wanted = self.headers.get("Range")
                server.asked.append((name, wanted))
                if name not in server.files:
                    return self.send_error(404)
                content = server.files[name]
                start = int(re.findall(r"\d+", wanted)[0]) if wanted and server.ranges else 0
                if start and start >= len(content):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start : None if server.cut is None else server.cut])
                return None

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    thread = threading.Thread(target=running.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.http.shutdown()
    running.http.server_close()
    thread.join()


@pytest.fixture
def flowers(server: Server, tmp_path: Path, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The three official files, with nine photos; their checksums take the place of the real ones."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for number in range(1, 10):
            tar.add(make_image(tmp_path / "src" / f"image_{number:05d}.jpg"), arcname=f"jpg/image_{number:05d}.jpg")
    server.files["102flowers.tgz"] = buffer.getvalue()
    for name, content in (("imagelabels.mat", {"labels": np.array([LABELS])}), ("setid.mat", SPLIT_IDS)):
        savemat(tmp_path / name, content)
        server.files[name] = (tmp_path / name).read_bytes()
    checksums = {name: md5(content) for name, content in server.files.items()}
    monkeypatch.setattr("petalite.data.fetch.FLOWERS_MD5", checksums)
    return server


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


EXPECTED = sorted(
    ["cat_to_name.json"]
    + [
        f"{split}/{LABELS[number - 1]}/image_{number:05d}.jpg"
        for split, key in (("train", "trnid"), ("valid", "valid"), ("test", "tstid"))
        for number in SPLIT_IDS[key]
    ]
)


def test_the_official_archives(flowers: Server, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fetch("flowers102", out, mirror=flowers.url) == out
    assert files_of(out) == EXPECTED
    data = open_data(out)
    assert data.classes == ("pink primrose", "globe thistle", "hard-leaved pocket orchid")
    flowers.asked.clear()
    fetch("flowers102", out, mirror=flowers.url)
    assert flowers.asked == []


def test_the_names_are_the_102_flowers(flowers: Server, tmp_path: Path) -> None:
    names = json.loads((fetch_flowers102(tmp_path / "out", mirror=flowers.url) / "cat_to_name.json").read_text())
    assert list(names) == [str(label) for label in range(1, 103)]
    assert (names["21"], names["60"], names["78"]) == ("fire lily", "pink-yellow dahlia", "lotus")


def test_a_transfer_that_was_cut_off_is_continued(flowers: Server, tmp_path: Path) -> None:
    flowers.cut = 100
    with pytest.raises(PetaliteError, match=r"102flowers\.tgz was cut off after 100 bytes .*; run again to go on"):
        fetch_flowers102(tmp_path / "out", mirror=flowers.url)
    assert files_of(tmp_path / "out") == [".downloads/102flowers.tgz.part"]
    flowers.cut = None
    flowers.asked.clear()
    fetch_flowers102(tmp_path / "out", mirror=flowers.url)
    assert flowers.asked[0] == ("102flowers.tgz", "bytes=100-")
    assert files_of(tmp_path / "out") == EXPECTED


def test_a_server_without_ranges_starts_again(flowers: Server, tmp_path: Path) -> None:
    (tmp_path / "setid.mat.part").write_bytes(b"something else")
    flowers.ranges = False
    content = flowers.files["setid.mat"]
    assert download(f"{flowers.url}/setid.mat", tmp_path / "setid.mat", md5(content)).read_bytes() == content


def test_a_part_that_is_too_long_starts_again(flowers: Server, tmp_path: Path) -> None:
    content = flowers.files["setid.mat"]
    (tmp_path / "setid.mat.part").write_bytes(content + b"more")
    assert download(f"{flowers.url}/setid.mat", tmp_path / "setid.mat", md5(content)).read_bytes() == content


def test_a_complete_part_is_not_fetched_again(flowers: Server, tmp_path: Path) -> None:
    content = flowers.files["setid.mat"]
    (tmp_path / "setid.mat.part").write_bytes(content)
    download(f"{flowers.url}/setid.mat", tmp_path / "setid.mat", md5(content))
    assert flowers.asked == []


def test_a_wrong_checksum_names_both(flowers: Server, tmp_path: Path) -> None:
    expected = md5(flowers.files["setid.mat"])
    flowers.files["setid.mat"] += b"!"
    found = md5(flowers.files["setid.mat"])
    with pytest.raises(
        PetaliteError, match=rf"/setid\.mat has the wrong checksum: expected md5 {expected}, found {found}"
    ):
        fetch_flowers102(tmp_path / "out", mirror=flowers.url)
    assert "train" not in {path.name for path in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out/.downloads/setid.mat.part").exists()


def test_an_interrupted_arrangement_is_finished(flowers: Server, tmp_path: Path, make_image: MakeImage) -> None:
    out = tmp_path / "out"
    make_image(out / "train/77/image_00077.jpg")
    make_image(out / ".downloads/arranged/valid/77/image_00078.jpg")
    fetch_flowers102(out, mirror=flowers.url)
    assert files_of(out) == EXPECTED


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(PetaliteError, match=r"no network: 127\.0\.0\.1:9 cannot be reached .*; connect and run again"):
        fetch_flowers102(tmp_path / "out", mirror="http://127.0.0.1:9")


def test_a_server_that_refuses(server: Server, tmp_path: Path) -> None:
    with pytest.raises(PetaliteError, match=r"102flowers\.tgz answers 404 Not Found; try again later"):
        fetch_flowers102(tmp_path / "out", mirror=server.url)


def test_a_mirror_that_is_no_address(tmp_path: Path) -> None:
    with pytest.raises(PetaliteError, match=r"somewhere/102flowers\.tgz is not a web address"):
        fetch_flowers102(tmp_path / "out", mirror="somewhere")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(PetaliteError, match="is not empty and not an unfinished fetch; give another folder"):
        fetch_flowers102(tmp_path)
    with pytest.raises(PetaliteError, match=r"mine\.txt is not empty"):
        fetch_flowers102(tmp_path / "mine.txt")


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(PetaliteError, match=r"unknown data set 'flower102' \(did you mean 'flowers102'\?\); known: "):
        fetch("flower102", tmp_path)
    with pytest.raises(
        PetaliteError, match=r"unknown source 'kagle' \(did you mean 'kaggle'\?\); known: official, kaggle"
    ):
        fetch("flowers102", tmp_path, source="kagle")


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt"])
def test_an_archive_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    if name.startswith("/"):
        unpack(archive, tmp_path / "inside")
        assert (tmp_path / "inside/outside.txt").exists()
    else:
        with pytest.raises(PetaliteError, match=r"bad\.tar cannot be unpacked"):
            unpack(archive, tmp_path / "inside")
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        member = tarfile.TarInfo("passwords")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(PetaliteError, match=r"bad\.tar cannot be unpacked: "):
        unpack(tmp_path / "bad.tar", tmp_path / "inside")
    assert not list(tmp_path.glob("inside/*"))


def test_folders_and_files_of_an_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "good.tgz", "w:gz") as tar:
        folder = tarfile.TarInfo("jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, text in (("jpg/1.jpg", b"one"), ("deeper/still/2.jpg", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    unpack(tmp_path / "good.tgz", tmp_path / "inside")
    files = {
        str(path.relative_to(tmp_path / "inside")): path.read_bytes()
        for path in tmp_path.rglob("*.jpg")
        if path.is_file()
    }
    assert files == {"jpg/1.jpg": b"one", "deeper/still/2.jpg": b""}


def test_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "bad.tgz").write_bytes(b"no archive")
    with pytest.raises(PetaliteError, match=r"bad\.tgz cannot be unpacked"):
        unpack(tmp_path / "bad.tgz", tmp_path / "inside")


# --- Kaggle ---------------------------------------------------------------------------------------------------------


def pretend_kagglehub(monkeypatch: pytest.MonkeyPatch, dataset_download: Callable[[str], str]) -> None:
    module = types.ModuleType("kagglehub")
    module.dataset_download = dataset_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kagglehub", module)


@pytest.mark.parametrize("flat_test", [True, False])
def test_kaggle(
    flowers: Server, tmp_path: Path, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch, flat_test: bool
) -> None:
    for path in EXPECTED[1:]:
        split, label, name = path.split("/")
        label = "" if split == "test" and flat_test else label
        make_image(tmp_path / "kaggle" / "dataset" / split / label / name)
    pretend_kagglehub(monkeypatch, lambda handle: str(tmp_path / "kaggle"))
    assert files_of(fetch_flowers102(tmp_path / "out", "kaggle", flowers.url)) == EXPECTED
    assert flowers.asked == [("imagelabels.mat", None)]
    assert (tmp_path / "kaggle/dataset/train").is_dir()


def test_kaggle_in_another_shape(flowers: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_kagglehub(monkeypatch, lambda handle: str(tmp_path))
    with pytest.raises(PetaliteError, match="has no train, valid and test folders; use the official source"):
        fetch_flowers102(tmp_path / "out", "kaggle", flowers.url)


def test_without_kagglehub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(PetaliteError, match=r"kagglehub is not installed; run: pip install 'petalite\[fetch\]'"):
        fetch_flowers102(tmp_path / "out", "kaggle")


def test_without_kaggle_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: str) -> str:
        raise RuntimeError(f"403 for {handle}\nmore lines")

    pretend_kagglehub(monkeypatch, refuse)
    with pytest.raises(PetaliteError) as caught:
        fetch_flowers102(tmp_path / "out", "kaggle")
    assert str(caught.value) == (
        "Kaggle did not give the data set (403 for nunenuh/pytorch-challange-flower-dataset); check the network and "
        "your credentials (~/.kaggle/kaggle.json, or KAGGLE_USERNAME and KAGGLE_KEY), or use the official source"
    )
