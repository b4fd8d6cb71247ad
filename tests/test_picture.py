"""The README's table and picture are what the CSVs say, and follow them when they change."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from tests.documents import ROOT


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("picture")


def test_the_readme_is_up_to_date(picture: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert picture.main(["--check"]) == 0, capsys.readouterr().out + "run python benchmarks/picture.py"


def test_a_measurement_that_changes_changes_the_table(picture: ModuleType, tmp_path: Path) -> None:
    for path in picture.HERE.glob("results/*.csv"):
        shutil.copy(path, tmp_path)
    before = picture.table(tmp_path)
    (peers,) = tmp_path.glob("gpu-peers_*.csv")
    header, *lines = peers.read_text().splitlines()
    columns = header.split(",")
    run = [one for one in lines if "_large_" in one and ",petalite-fp8," in one and ",256," in one][-1].split(",")[0]
    # the last run counts, here with the same figures; the columns before any quoted text can be set by position
    assert columns[:4] == ["run", "model", "batch_size", "candidate"]
    again = [one.replace(run, "29991231T000000Z") for one in lines if one.startswith(run)]
    peers.write_text("\n".join([header, *lines, *again]) + "\n")
    assert picture.table(tmp_path) == before
    peers.write_text("\n".join([header, *(one for one in lines if ",petalite-fp8," not in one)]) + "\n")
    after = picture.table(tmp_path)
    assert set(before.splitlines()) - set(after.splitlines())
    assert all("fp8" in one for one in set(before.splitlines()) - set(after.splitlines()))


def test_the_picture_has_a_bar_a_step_within_its_frame(picture: ModuleType) -> None:
    root = ElementTree.fromstring(picture.picture(picture.HERE / "results"))
    frame, *bars = [one for one in root.iter() if one.tag.endswith("rect")]
    rows = picture.rows_of(picture.HERE / "results", "gpu-waterfall_*.csv")
    largest = max(int(row["batch_size"]) for row in rows)
    assert len(bars) == len({row["step"] for row in rows if int(row["batch_size"]) == largest}) >= 5
    assert all(float(bar.get("x")) + float(bar.get("width")) < float(frame.get("width")) - 100 for bar in bars)  # type: ignore[arg-type]


def test_pictures_load_nothing_and_say_what_they_show() -> None:
    for path in (ROOT / "docs" / "pictures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert "<title>" in text and "href" not in text and "<script" not in text and text.count("http") == 1, path
        ElementTree.fromstring(text)
