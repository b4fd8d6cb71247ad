"""The files that predictions are written to, by their ending: CSV, JSONL, Parquet; the same columns in each.

    table = table_of(Path("predictions.jsonl"))
    table.write(rows, file)               # a part
    table.join(parts, file)               # parts in order, as one file

In CSV everything is text. In JSONL and Parquet scores are numbers, and what is not there is null. Parquet keeps a row
group for each part.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from petalite.errors import PetaliteError, did_you_mean
from petalite.prediction.extras import needed
from petalite.prediction.rows import COLUMNS, Row

#: Rows of a Parquet row group at most.
_GROUP = 65_536


@dataclass(frozen=True)
class Table:
    """A file format for rows.

    write: rows into a file. join: files that `write` made, in order, into one that `write` could have made (of Parquet:
    the same rows). read: the rows of a file, one after the other. require: raise PetaliteError where it cannot be used.
    """

    ending: str
    write: Callable[[Iterable[Row], BinaryIO], None]
    join: Callable[[Sequence[Path], BinaryIO], None]
    read: Callable[[Path], Iterator[Row]]
    require: Callable[[], object]


def table_of(out: Path) -> Table:
    """The format that `out`'s ending asks for. Raises PetaliteError for another ending, or a package that is missing."""
    table = next((table for table in TABLES if table.ending == out.suffix.lower()), None)
    if table is None:
        known = [table.ending for table in TABLES]
        hint = did_you_mean(out.suffix, known)
        raise PetaliteError(f"--out {out} must end in {', '.join(known[:-1])} or {known[-1]}{hint}")
    table.require()
    return table


# --- CSV ------------------------------------------------------------------------------------------------------------

_HEADER = (",".join(COLUMNS) + "\n").encode()


def _write_csv(rows: Iterable[Row], file: BinaryIO) -> None:
    file.write(_HEADER)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(rows)
    text.detach()


def _join_csv(parts: Sequence[Path], file: BinaryIO) -> None:
    file.write(_HEADER)
    for part in parts:
        with part.open("rb") as source:
            source.seek(len(_HEADER))
            shutil.copyfileobj(source, file)


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


# --- JSONL ----------------------------------------------------------------------------------------------------------


def _write_jsonl(rows: Iterable[Row], file: BinaryIO) -> None:
    for row in rows:
        file.write(json.dumps(_values(row), ensure_ascii=False).encode() + b"\n")


def _join_jsonl(parts: Sequence[Path], file: BinaryIO) -> None:
    for part in parts:
        with part.open("rb") as source:
            shutil.copyfileobj(source, file)


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield _texts(json.loads(line))


# --- Parquet --------------------------------------------------------------------------------------------------------


def _parquet() -> Any:
    return needed("pyarrow.parquet", "parquet", "Parquet files")


def _schema() -> Any:
    arrow = needed("pyarrow", "parquet", "Parquet files")
    return arrow.schema([(name, arrow.float64() if _is_score(name) else arrow.string()) for name in COLUMNS])


def _write_parquet(rows: Iterable[Row], file: BinaryIO) -> None:
    arrow, schema = needed("pyarrow", "parquet", "Parquet files"), _schema()
    held: list[dict[str, str | float | None]] = []
    with _parquet().ParquetWriter(file, schema) as writer:
        for row in rows:
            held.append(_values(row))
            if len(held) == _GROUP:
                writer.write_table(arrow.Table.from_pylist(held, schema))
                held.clear()
        if held:
            writer.write_table(arrow.Table.from_pylist(held, schema))


def _join_parquet(parts: Sequence[Path], file: BinaryIO) -> None:
    parquet = _parquet()
    with parquet.ParquetWriter(file, _schema()) as writer:
        for part in parts:
            with parquet.ParquetFile(part) as source:
                for group in range(source.num_row_groups):
                    writer.write_table(source.read_row_group(group))


def _read_parquet(path: Path) -> Iterator[Row]:
    with _parquet().ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from map(_texts, batch.to_pylist())


# --- between text and values ----------------------------------------------------------------------------------------


def _is_score(column: str) -> bool:
    return column.startswith("score_")


def _values(row: Row) -> dict[str, str | float | None]:
    return {name: None if text == "" else float(text) if _is_score(name) else text for name, text in row.items()}


def _texts(values: dict[str, Any]) -> Row:
    return {
        name: "" if value is None else f"{value:.6f}" if _is_score(name) else str(value)
        for name, value in values.items()
    }


TABLES = (
    Table(".csv", _write_csv, _join_csv, _read_csv, lambda: None),
    Table(".jsonl", _write_jsonl, _join_jsonl, _read_jsonl, lambda: None),
    Table(".parquet", _write_parquet, _join_parquet, _read_parquet, _parquet),
)
