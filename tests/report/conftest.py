"""The studies that several tests of the report read: drawn once, since figures take seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from petalite.report import write_report
from tests.report.synthetic import write_study

#: What a class, a variant or a reason may be called by someone careless or hostile.
HOSTILE = "<script>alert('x')</script>"
UNICODE = "Königin der Nacht 夜の女王 $\\frac{1}{0}$"
LONG = "a variant whose name goes on, and on, and on, until no column could ever hold it"


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete study, without a report."""
    return write_study(tmp_path_factory.mktemp("report") / "study")


@pytest.fixture(scope="session")
def page(study: Path) -> str:
    """The complete study's page."""
    return write_report(study).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in which things went wrong: failed and skipped variants, hostile names, photos gone, nothing trained."""
    classes = (HOSTILE, UNICODE, "a" * 300, "rose & <b>thorn</b>", '" onerror="alert(1)')
    out = write_study(
        tmp_path_factory.mktemp("rough") / "study",
        failed={"int8-fa2": ("failed", f"CUDA error: {HOSTILE}"), "int8-sdpa": ("skipped", "needs a GPU of SM80+")},
        names={"nf4-sdpa": LONG},
        classes=classes,
        extra_wrong=20,
        train=False,
        photos=False,
        blocks=("accuracy", "latency", "memory"),
    )
    write_report(out)
    return out
