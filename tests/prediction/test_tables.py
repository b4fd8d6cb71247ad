"""The three formats hold the same rows, and parts become one file that could have been written at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from petalite.errors import PetaliteError
from petalite.prediction.rows import COLUMNS, Row, printable, row, write_predictions
from petalite.prediction.tables import TABLES, Table, table_of

ROWS: list[Row] = [
    row("a,b\n.jpg", "rose", [("rose", 0.75), ("tulip", 1e-7)]),
    row("夜.jpg", "", error="夜.jpg is empty (0 bytes)"),
    row('"c".jpg', "tulip", [(f"class {rank}", 0.1) for rank in range(7)]),
]


@pytest.fixture(params=TABLES, ids=lambda table: table.ending[1:])
def table(request: pytest.FixtureRequest) -> Table:
    found: Table = request.param
    if found.ending == ".parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow")
    return found


def written(table: Table, path: Path, rows: list[Row]) -> Path:
    with path.open("wb") as file:
        table.write(rows, file)
    return path


def test_rows_come_back(table: Table, tmp_path: Path) -> None:
    assert list(table.read(written(table, tmp_path / "x", ROWS))) == ROWS
    assert list(table.read(written(table, tmp_path / "y", []))) == []


def test_parts_become_one_file(table: Table, tmp_path: Path) -> None:
    parts = [written(table, tmp_path / str(number), [*ROWS[number:], *ROWS]) for number in range(3)]
    with (tmp_path / "joined").open("wb") as file:
        table.join(parts, file)
    rows = [found for number in range(3) for found in (*ROWS[number:], *ROWS)]
    assert list(table.read(tmp_path / "joined")) == rows
    if table.ending != ".parquet":  # which keeps a row group for each part
        assert (tmp_path / "joined").read_bytes() == written(table, tmp_path / "whole", rows).read_bytes()


def test_csv_is_the_contract(tmp_path: Path) -> None:
    write_predictions(tmp_path / "contract.csv", ROWS)
    text = (tmp_path / "contract.csv").read_bytes()
    assert text.startswith(b"path,target,prediction_1,score_1,prediction_2,score_2,prediction_3,score_3,")
    assert text == written(TABLES[0], tmp_path / "part.csv", ROWS).read_bytes()
    assert b'"a,b\n.jpg",rose,rose,0.750000,tulip,0.000000,,,,,,,\n' in text


def test_values_are_numbers_and_null(tmp_path: Path) -> None:
    first = json.loads(written(TABLES[1], tmp_path / "x", ROWS).read_text().splitlines()[0])
    assert tuple(first) == COLUMNS
    assert (first["score_1"], first["score_2"], first["score_3"], first["error"]) == (0.75, 0.0, None, None)
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    found = parquet.read_table(written(TABLES[2], tmp_path / "y", ROWS)).to_pylist()
    assert found[0] == first


def test_names_that_are_no_text_are_spelled_out() -> None:
    assert printable(Path("caf\udce9/夜.jpg")) == "caf\\xe9/夜.jpg"


@pytest.mark.parametrize(
    ("name", "says"), [("x.txt", "must end in .csv, .jsonl or .parquet"), ("x.json", "did you mean")]
)
def test_other_endings_are_refused(name: str, says: str) -> None:
    with pytest.raises(PetaliteError, match=says):
        table_of(Path(name))


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(PetaliteError, match=r"^Parquet files need pyarrow, .*: pip install 'petalite\[parquet\]'$"):
        table_of(Path("x.parquet"))
    assert table_of(Path("x.CSV")).ending == ".csv"
