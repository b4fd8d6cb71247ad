"""Reading a study's folder, whatever is missing from it or wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from petalite.errors import PetaliteError
from petalite.report.inputs import Prediction, read_study
from petalite.report.variants import variants
from tests.report.synthetic import write_study


def test_a_whole_study(study: Path) -> None:
    read = read_study(study)
    assert [variant.name for variant in read.variants] == ["fp32", "nf4-fa2", "int8-fa2", "nf4-sdpa", "int8-sdpa"]
    assert read.baseline is read.variants[0]
    assert (read.budget, read.images, len(read.metrics)) == (1.0, 120, 6)
    assert len(read.samples_ms(read.variants[1])) == 140
    assert read.rounds["fp32"] == 5
    first = read.predictions["fp32"][0]
    assert first.target is not None
    assert len(first.top) == 5
    assert 0 < (first.score or 0) < 1


def test_only_the_results_are_needed(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"variants": [{"name": "fp32"}]}))
    read = read_study(tmp_path)
    assert (read.baseline, read.budget, read.images, read.run, read.predictions) == (None, None, None, {}, {})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", "{", "cannot be read as JSON"),
        ("results.json", "[]", "no list of variants"),
        ("run.json", "[1]", "does not hold a JSON object"),
        ("predictions/fp32.csv", "path,target\n\xff\x00", "cannot be read as CSV"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    out = write_study(tmp_path / "s", variants=("fp32",), photos=False)
    (out / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(PetaliteError, match=message) as caught:
        read_study(out)
    assert "\n" not in str(caught.value)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PetaliteError, match=r"holds no results\.json; point to"):
        read_study(tmp_path)


def test_numbers_that_are_none_count_as_missing() -> None:
    (row,) = variants(
        {
            "variants": [
                {
                    "accuracy": {"top1": float("nan"), "top1_ci95": [0.1], "drop_points": "1", "agreement": True},
                    "latency": None,
                    "throughput_by_batch": [{"batch_size": 8, "images_per_s": None, "reason": "out of memory"}],
                    "memory": {"disk_bytes": float("inf")},
                    "kernels": {"matmul_ms": 2.0},
                }
            ]
        }
    )
    assert (row.name, row.ok) == ("variant 1", True)
    assert (row.top1, row.top1_ci, row.drop, row.agreement, row.p50_ms, row.disk_bytes) == (None,) * 6
    assert row.throughput_by_batch == ()
    assert row.batch_failures == ((8, "out of memory"),)
    assert row.kernel_ms == {"attention": 0.0, "matmul": 2.0, "dequantize": 0.0, "other": 0.0}


def test_predictions_come_from_text_as_from_numbers() -> None:
    text = Prediction.of({"path": "a.jpg", "target": "", "prediction_1": "rose", "score_1": "0.75", "prediction_2": ""})
    numbers = Prediction.of({"path": "a.jpg", "target": None, "prediction_1": "rose", "score_1": 0.75})
    assert text == numbers
    assert (text.best, text.score, text.right) == ("rose", 0.75, None)
    assert Prediction.of({"path": "b", "target": "rose", "prediction_1": "lily"}).right is False
    assert Prediction.of({"path": "c", "error": "c is empty (0 bytes)"}).best is None
