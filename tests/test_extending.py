"""docs/extending.md followed to the letter: its two files are written into a copy of the package, and nothing else is edited.

What the page says to try is run there, in one process of its own: the lists, a quantized checkpoint that is evaluated with
the new attention, and the checks that every format and backend goes through.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.documents import ROOT, blocks, commands
from tests.tiny import tiny_checkpoint

GUIDE = ROOT / "docs" / "extending.md"
#: Runs the lines of argv[1] one after the other and prints each exit code; a bench's processes would take long to start.
DRIVER = """
import contextlib, io, json, sys
import pytest
from petalite.cli import main

codes, printed = [], []
for words in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if words[:3] == ["python", "-m", "pytest"]:
            codes.append(int(pytest.main(["-q", "-p", "no:cacheprovider", *words[3:]])))
        else:
            sys.argv = words
            try:
                main()
            except SystemExit as ended:
                codes.append(int(ended.code or 0))
    printed.append(out.getvalue())
print(json.dumps({"codes": codes, "printed": printed}))
"""


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each line under "Try it" printed; all of them ended with 0."""
    clone = tmp_path_factory.mktemp("clone")
    leave = shutil.ignore_patterns("__pycache__")
    for name in ("petalite", "tests"):
        shutil.copytree(ROOT / name, clone / name, ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", clone)
    for block in blocks(GUIDE):
        if block.language == "python":
            name = re.match(r"# (\S+\.py)\n", block.text)
            assert name, f"{block.where}: the first line names the file"
            assert not (clone / name[1]).exists()
            (clone / name[1]).write_text(block.text)
    classes = tuple(map(str, range(10)))
    tiny_checkpoint(clone / "runs" / "demo" / "checkpoints" / "fp32", classes=classes)
    lines = [
        line for block in blocks(GUIDE) if block.language == "" for line in commands(block) if " bench " not in line
    ]
    lines.sort(key=lambda line: "pytest" not in line)  # it wants to be there before what it may rewrite is imported
    environment = {**os.environ, "PYTHONPATH": str(clone), "PETALITE_CACHE": str(clone / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([shlex.split(line) for line in lines])],
        cwd=clone, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["codes"]) == {0}, f"{told}\n{done.stderr}"
    return dict(zip(lines, told["printed"], strict=True))


def test_both_are_listed_and_run_here(followed: dict[str, str]) -> None:
    assert re.search(r"log8 .*8-bit logarithms", followed["petalite ls formats"])
    assert re.search(r"chunked .*64 queries at a time", followed["petalite ls attention"])
    assert "not here" not in "".join(
        line for text in followed.values() for line in text.splitlines() if "log8" in line or "chunked" in line
    )


def test_the_common_checks_pass_over_them(followed: dict[str, str]) -> None:
    told = next(text for line, text in followed.items() if "pytest" in line)
    passed = re.search(r"(\d+) passed", told)
    assert passed and int(passed[1]) >= 30, told
    assert "failed" not in told and "skipped" not in told


def test_a_checkpoint_in_the_format_is_evaluated_with_the_attention(followed: dict[str, str]) -> None:
    line, told = next((line, text) for line, text in followed.items() if line.startswith("petalite evaluate"))
    assert "--attention chunked" in line and "runs/log8" in line
    assert "top-1" in told and "points" in told


def test_the_guide_s_files_are_as_the_repository_s_are() -> None:
    for block in blocks(GUIDE):
        if block.language == "python":
            done = subprocess.run(
                [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), "-"],
                input=block.text, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout
