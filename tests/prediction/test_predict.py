"""`predict` on this machine: every image once, whatever happens on the way, and the same file as if nothing had."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petalite.data.images import decode
from petalite.engine import load
from petalite.errors import PetaliteError
from petalite.prediction import predict
from petalite.prediction.parts import Part, Parts
from petalite.prediction.passes import target_of
from petalite.prediction.shards import Item
from petalite.prediction.tables import TABLES, table_of
from tests.prediction.conftest import MakeTar
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.usefixtures("small_parts")
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(checkpoint: Path, photos: Path) -> Run:
    """Predict the photos in chunks of 4, batches of 2, in this process."""

    def call(out: Path, *sources: object, **options: Any) -> dict[str, Any]:
        given = {"device": "cpu", "batch_size": 2, "workers": 0, **options}
        return predict(checkpoint, sources or [photos], out, **given)  # type: ignore[arg-type]

    return call


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """After this many parts, end as Ctrl-C does."""

    def stop(after: int) -> None:
        add, done = Parts.add, [0]

        def adding(parts: Parts, number: int, part: Part) -> None:
            if done[0] == after:
                raise KeyboardInterrupt
            add(parts, number, part)
            done[0] += 1

        monkeypatch.setattr(Parts, "add", adding)

    return stop


def test_rows_are_what_the_classifier_says(run: Run, checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    summary = run(tmp_path / "out.csv", photos / "rose", photos / "daisy" / "0.png")
    assert (summary["images"], summary["errors"], summary["resumed"]) == (6, 0, 0)
    assert summary["images_per_s"] > 0
    paths = [*sorted((photos / "rose").iterdir()), photos / "daisy" / "0.png"]
    rows = list(table_of(tmp_path / "out.csv").read(tmp_path / "out.csv"))
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    for row, answer in zip(rows, load(checkpoint, "cpu").predict(paths), strict=True):
        assert [row[f"prediction_{rank}"] for rank in (1, 2, 3)] == [prediction.label for prediction in answer]
        assert float(row["score_1"]) == pytest.approx(answer[0].score, abs=0.02)  # batches of another size, in bf16
        assert row["prediction_4"] == row["error"] == ""
    assert list(tmp_path.glob("*.parts")) == list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.ending[1:])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_resumed_is_the_same_as_undisturbed(
    run: Run, tmp_path: Path, stopped: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, table: Any, after: int
) -> None:
    if table.ending == ".parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow")
    whole, out = tmp_path / f"whole{table.ending}", tmp_path / f"out{table.ending}"
    run(whole)
    stopped(after)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    assert not out.exists()
    monkeypatch.undo()
    monkeypatch.setattr("petalite.prediction.sources._LEAST", 4)
    if after:
        with pytest.raises(PetaliteError, match="holds a run that has not ended; add --resume"):
            run(out)
    summary = run(out, resume=True, workers=2)
    assert (summary["images"], summary["resumed"]) == (15, 4 * after)
    assert out.read_bytes() == whole.read_bytes()


KILLED = """
import multiprocessing, os, signal, sys
from petalite.prediction import predict, sources
from petalite.prediction.parts import Parts

sources._LEAST = 4
add = Parts.add

def adding(parts, number, part):
    add(parts, number, part)
    if number == 1:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

Parts.add = adding
predict(sys.argv[1], [sys.argv[2]], sys.argv[3], device="cpu", batch_size=2, workers=2)
"""


def test_killed_outright_and_resumed(checkpoint: Path, photos: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    command = [sys.executable, "-c", KILLED, str(checkpoint), str(photos), str(out)]
    killed = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    assert killed.returncode == -signal.SIGKILL
    (tmp_path / "out.csv.parts" / ".00000002.csv.abc.tmp").write_text("half")
    assert run(out, resume=True)["resumed"] == 8
    run(tmp_path / "whole.csv")
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    workers = killed.stdout.split()
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{int(pid)}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived the process that started it"
        time.sleep(0.02)


def test_a_run_goes_on_only_with_the_same_images_and_the_same_checkpoint(
    run: Run, photos: Path, tmp_path: Path, stopped: Callable[[int], None]
) -> None:
    out = tmp_path / "out.csv"
    stopped(2)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    with pytest.raises(PetaliteError, match=r"begun with another batch size \(2, now 4\); use the same, or --force"):
        run(out, resume=True, batch_size=4)
    other = tiny_checkpoint(tmp_path / "other", seed=1).path
    with pytest.raises(PetaliteError, match="begun with another checkpoint"):
        predict(other, [photos], out, device="cpu", batch_size=2, workers=0, resume=True)
    with pytest.raises(PetaliteError, match="holds other images than the sources name now"):
        run(out, photos / "rose", resume=True)
    with pytest.raises(PetaliteError, match="holds images that the sources do not name now"):
        run(out, *sorted((photos / "daisy").iterdir())[:4], resume=True)
    assert len(list((tmp_path / "out.csv.parts").glob("0*.csv"))) == 2


def test_an_output_is_never_lost(run: Run, photos: Path, tmp_path: Path, stopped: Callable[[int], None]) -> None:
    out = tmp_path / "out.csv"
    run(out)
    text = out.read_text()
    with pytest.raises(PetaliteError, match=r"out\.csv exists; add --force to replace it"):
        run(out)
    assert run(out, resume=True)["resumed"] == 15
    with pytest.raises(PetaliteError, match="is complete, but of other images"):
        run(out, photos / "rose", resume=True)
    with pytest.raises(PetaliteError, match="choose one"):
        run(out, resume=True, force=True)
    stopped(1)
    with pytest.raises(KeyboardInterrupt):
        run(out, photos / "rose", force=True)
    assert out.read_text() == text  # until the new one is complete


def test_a_full_disk_is_one_line_and_what_is_written_stays(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, synced = tmp_path / "out.csv", os.fsync
    calls = [0]

    def full(file: int) -> None:
        calls[0] += 1
        if calls[0] > 3:  # the record and two parts
            raise OSError(errno.ENOSPC, "No space left on device")
        synced(file)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PetaliteError, match=r"no space left to write .*; 8 images are kept in .*\.parts: --resume"):
        run(out)
    monkeypatch.setattr("os.fsync", synced)
    parts = sorted((tmp_path / "out.csv.parts").iterdir())
    assert [path.suffix for path in parts] == [".csv", ".csv", ".json"]
    assert len(list(table_of(out).read(parts[1]))) == 4
    assert run(out, resume=True)["resumed"] == 8
    run(tmp_path / "whole.csv")
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_an_image_that_crashes_its_decoder_is_a_row(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole.csv")

    def crashing(source: str) -> object:
        if source.endswith("rose/3.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(source)

    monkeypatch.setattr("petalite.data.loader.decode", crashing)
    assert run(tmp_path / "out.csv", workers=2)["errors"] == 1
    before, after = ((tmp_path / name).read_text().splitlines() for name in ("whole.csv", "out.csv"))
    (bad,) = (line for line in after if "rose/3.png" in line)
    assert bad == f"{photos}/rose/3.png,,,,,,,,,,,,{photos}/rose/3.png crashes the image decoder"
    others = [number for number, line in enumerate(after) if line != bad]
    assert [after[number].split(",")[0] for number in others] == [before[number].split(",")[0] for number in others]


def test_a_shard_gives_what_its_files_give(run: Run, photos: Path, tmp_path: Path, make_tar: MakeTar) -> None:
    files = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in sorted(photos.rglob("*.png"))}
    make_tar(tmp_path / "s.tar", {**files, "bad.png": b"\x89PNG no more", "bad.cls": b"2"})
    summary = run(tmp_path / "shard.csv", tmp_path / "s.tar")
    assert (summary["images"], summary["errors"]) == (16, 1)
    run(tmp_path / "files.csv")
    table = table_of(tmp_path / "x.csv")
    *shard, bad = table.read(tmp_path / "shard.csv")
    plain = [{**row, "path": row["path"].replace(f"{tmp_path}/s.tar", str(photos))} for row in shard]
    assert plain == list(table.read(tmp_path / "files.csv"))
    assert (bad["target"], bad["prediction_1"]) == ("tulip", "")
    assert bad["error"].startswith(f"{tmp_path}/s.tar/bad.png: the image is")


def test_targets_are_names_of_classes() -> None:
    folders, classes = {"1": "rose", "2": "daisy"}, ("daisy", "rose")
    given = [None, 0, 7, "rose", "1", "oak"]
    assert [target_of(Item("x/2/a.jpg", target), folders, classes) for target in given] == [
        "daisy", "daisy", "7", "rose", "rose", "oak",
    ]  # fmt: skip
    assert target_of(Item("elsewhere/a.jpg"), folders, classes) == ""
