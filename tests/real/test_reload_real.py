"""Quantized real weights in a fresh process: Petalite, timm and transformers give the same logits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from petalite.data import Preprocess, decode
from petalite.engine import load
from petalite.files import read_json
from petalite.formats import FORMATS
from petalite.quantization import quantize

pytestmark = pytest.mark.real

SCRIPT = """
import sys, torch
kind, folder, pixels, out = sys.argv[1:]
batch = torch.load(pixels)
if kind == "petalite":
    import petalite
    logits = petalite.load(folder, "cpu", engine="module").logits(batch)
else:
    import warnings; warnings.simplefilter("ignore")
    with torch.inference_mode():
        if kind == "timm":
            import timm
            logits = timm.create_model("local-dir:" + folder, pretrained=True).eval()(batch)
        else:
            from transformers import AutoModelForImageClassification
            logits = AutoModelForImageClassification.from_pretrained(folder).eval()(batch).logits.float()
torch.save(logits, out)
"""


@pytest.fixture(scope="module")
def folders(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("formats")
    for name in FORMATS:
        quantize(shared / "models" / "vit_tiny_patch16_224", name, root / name)
    return root


@pytest.fixture(scope="module")
def batch(shared: Path, folders: Path) -> torch.Tensor:
    """Four real photos, normalized."""
    preprocess = Preprocess.from_config(read_json(folders / "fp32" / "config.json"))
    photos = sorted((shared / "data" / "flowers102" / "test" / "1").glob("*.jpg"))[:4]
    return preprocess.normalize(torch.stack([preprocess(decode(photo)) for photo in photos]))


def in_a_fresh_process(kind: str, folder: Path, batch: torch.Tensor, tmp_path: Path) -> torch.Tensor:
    torch.save(batch, tmp_path / "batch.pt")
    command = [sys.executable, "-c", SCRIPT, kind, str(folder), str(tmp_path / "batch.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    logits: torch.Tensor = torch.load(tmp_path / "out.pt")
    return logits


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_reload_is_bit_equal(folders: Path, batch: torch.Tensor, tmp_path: Path, name: str) -> None:
    here = load(folders / name, "cpu", engine="module").logits(batch)
    assert torch.equal(in_a_fresh_process("petalite", folders / name, batch, tmp_path), here)


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_timm_loads_the_plain_ones(folders: Path, batch: torch.Tensor, tmp_path: Path, name: str) -> None:
    """timm computes in fp32 whatever the file holds."""
    here = load(folders / name, "cpu", compute="fp32", engine="module").logits(batch)
    torch.testing.assert_close(in_a_fresh_process("timm", folders / name, batch, tmp_path), here, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16", "nf4", "int8"])
def test_transformers_loads_them(folders: Path, batch: torch.Tensor, tmp_path: Path, name: str) -> None:
    """transformers computes in the precision of the file."""
    compute = name if FORMATS[name].plain else FORMATS[name].rest
    here = load(folders / name, "cpu", compute=compute, engine="module").logits(batch)
    there = in_a_fresh_process("transformers", folders / name, batch, tmp_path)
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)


def test_the_real_model_survives_its_formats(folders: Path, batch: torch.Tensor) -> None:
    """A bound on what each format may do to real logits; top-1 on the whole test split is in the README."""
    exact = load(folders / "fp32", "cpu", engine="module").logits(batch)
    for name, bound in {"fp16": 0.05, "bf16": 0.05, "int8": 0.15, "nf4": 0.8}.items():
        logits = load(folders / name, "cpu", engine="module").logits(batch)
        assert (logits - exact).norm() / exact.norm() < bound, name
