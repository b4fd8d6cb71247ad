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

#: In a process of its own, which loads one format after the other.
READERS = {
    "petalite": """
import petalite
def read(folder): return petalite.load(folder, "cpu", engine="module").logits(batch)
""",
    "timm": """
import timm
def read(folder): return timm.create_model("local-dir:" + folder, pretrained=True).eval()(batch)
""",
    "transformers": """
from transformers import AutoModelForImageClassification
def read(folder): return AutoModelForImageClassification.from_pretrained(folder).eval()(batch).logits.float()
""",
}
SCRIPT = """
import sys, torch, warnings
warnings.simplefilter("ignore")
root, pixels, out, *names = sys.argv[1:]
batch = torch.load(pixels)
{reader}
with torch.inference_mode():
    torch.save({{name: read(root + "/" + name).clone() for name in names}}, out)
"""
PLAIN, PACKED = ("fp32", "fp16", "bf16"), ("nf4", "int8")


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


def in_a_fresh_process(
    reader: str, names: tuple[str, ...], folders: Path, batch: torch.Tensor, room: Path
) -> dict[str, torch.Tensor]:
    """What one library makes of the batch, by format."""
    torch.save(batch, room / "batch.pt")
    paths = [str(folders), str(room / "batch.pt"), str(room / "out.pt")]
    command = [sys.executable, "-c", SCRIPT.format(reader=READERS[reader]), *paths, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    logits: dict[str, torch.Tensor] = torch.load(room / "out.pt")
    assert set(logits) == set(names)
    return logits


def test_reload_is_bit_equal(folders: Path, batch: torch.Tensor, tmp_path: Path) -> None:
    for name, there in in_a_fresh_process("petalite", PACKED, folders, batch, tmp_path).items():
        assert torch.equal(there, load(folders / name, "cpu", engine="module").logits(batch)), name


def test_timm_loads_the_plain_ones(folders: Path, batch: torch.Tensor, tmp_path: Path) -> None:
    """timm computes in fp32 whatever the file holds."""
    for name, there in in_a_fresh_process("timm", PLAIN, folders, batch, tmp_path).items():
        here = load(folders / name, "cpu", compute="fp32", engine="module").logits(batch)
        torch.testing.assert_close(there, here, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_transformers_loads_them(folders: Path, batch: torch.Tensor, tmp_path: Path) -> None:
    """transformers computes in the precision of the file."""
    for name, there in in_a_fresh_process("transformers", (*PLAIN, *PACKED), folders, batch, tmp_path).items():
        compute = name if FORMATS[name].plain else FORMATS[name].rest
        here = load(folders / name, "cpu", compute=compute, engine="module").logits(batch)
        torch.testing.assert_close(there, here, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_the_real_model_survives_its_formats(folders: Path, batch: torch.Tensor) -> None:
    """A bound on what each format may do to real logits; top-1 on the whole test split is in the README."""
    exact = load(folders / "fp32", "cpu", engine="module").logits(batch)
    for name, bound in {"fp16": 0.05, "bf16": 0.05, "int8": 0.15, "nf4": 0.8}.items():
        logits = load(folders / name, "cpu", engine="module").logits(batch)
        assert (logits - exact).norm() / exact.norm() < bound, name
