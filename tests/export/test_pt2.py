"""AOTInductor: what is handed to its compiler is the model, for any number of images; compiling itself takes too long here.

`benchmarks/exports.py` compiles a real model and runs it on real photos.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from petalite.errors import PetaliteError
from petalite.export.pt2_file import traced, write
from petalite.export.targets import Job
from tests.engine.networks import exact_logits
from tests.tiny import tiny_checkpoint, tiny_pixels


def test_what_is_compiled_is_the_model_with_its_merging(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    checkpoint = replace(checkpoint, plan=replace(checkpoint.plan, merge=(3, 2)))
    program: Any = traced(Job(checkpoint, "pixels")).module()
    for count in (2, 5):
        pixels = tiny_pixels(count)
        torch.testing.assert_close(program(pixels).double(), exact_logits(checkpoint, pixels), rtol=1e-4, atol=1e-4)


def test_a_compiler_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nand many pages more")

    monkeypatch.setattr("petalite.export.pt2_file.traced", lambda job: None)
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fails)
    with pytest.raises(PetaliteError, match=r"could not compile this model \(RuntimeError: no C\+\+ compiler\)$"):
        write(Job(tiny_checkpoint(tmp_path / "tiny")), tmp_path)
