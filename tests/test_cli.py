"""The command line as a person meets it: wrong use, `--json`, the verbs one after the other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from petalite.files import read_json
from petalite.quantization import quantize
from tests.command import Petalite, checkpoint, images, petalite

__all__ = ["checkpoint", "images", "petalite"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rum"], "no verb 'rum' (did you mean 'run'?)"),
        (["quantize"], "Missing argument"),
        (["run"], "name a recipe, or at least --data and --model"),
        (["run", "missing.toml"], "recipe missing.toml does not exist"),
        (["predict", "missing", "x.jpg"], "x.jpg does not exist"),
        (["quantize", "missing", "--out", "x"], "missing does not exist"),
        (["quantize", "missing", "--format", "nf5", "--out", "x"], "unknown format 'nf5' (did you mean 'nf4'?)"),
        (
            ["run", "--data", "d", "--model", "m", "--method", "lorra"],
            "unknown train.method 'lorra' (did you mean 'lora'?)",
        ),
        (["run", "--data", "d", "--model", "m", "--epochs", "0"], "train.epochs must be at least 1"),
        (["data", "fetch", "flowers"], "did you mean 'flowers102'?"),
        (["ls", "format"], "did you mean 'formats'?"),
        (["data", "chek"], "did you mean 'check'?); `petalite data --help` lists them"),
        (["evaluate", "c", "--data", "digits", "--split", "tests"], "unknown split 'tests' (did you mean 'test'?)"),
    ],
)
def test_wrong_use_is_one_line(
    petalite: Petalite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = petalite(*arguments)
    assert outcome.code == 2
    assert says in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_document_also_for_errors(petalite: Petalite, checkpoint: Path, images: Path) -> None:
    accuracy = json.loads(petalite("evaluate", checkpoint, "--data", images, "--json").out)
    assert accuracy["images"] == 6
    assert (accuracy["info"]["engine"], accuracy["info"]["attention"]) == ("openvino", "openvino")
    assert "error" in json.loads(petalite("evaluate", "missing", "--data", images, "--json").out)


def test_the_verbs_work_one_after_the_other(petalite: Petalite, checkpoint: Path, images: Path, tmp_path: Path) -> None:
    quantized = tmp_path / "nf4"
    assert petalite("quantize", checkpoint, "--format", "nf4", "--keep", "blocks.0", "--out", quantized).code == 0
    assert read_json(quantized / "plan.json")["layers"]["blocks.0.attn.qkv"] == "bf16"
    outcome = petalite("evaluate", quantized, "--data", images, "--baseline", checkpoint)
    assert outcome.code == 0
    assert "McNemar" in outcome.out
    benched = petalite("bench", quantized, "--samples", 2, "--seconds", 0.01, "--rounds", 1, "--throughput-batches", 2,
                       "--device", "cpu", "--json", "--out", tmp_path / "bench.csv")  # fmt: skip
    assert json.loads(benched.out)[0]["status"] == "ok"
    assert (tmp_path / "bench.csv").read_text().startswith("variant,")
    profiled = json.loads(petalite("profile", quantized, "--device", "cpu", "--json").out)
    assert profiled["attention_ran"] == "openvino" and profiled["matmul_ms"] > 0
    out = tmp_path / "answers" / "predictions.csv"
    assert petalite("predict", quantized, images / "test", "--out", out, "--device", "cpu").code == 0
    assert out.with_suffix(".png").stat().st_size > 1000
    assert len(out.read_text().splitlines()) == 7


@pytest.mark.parametrize("kind", ["formats", "attention", "compute", "models"])
def test_ls_lists_what_there_is(petalite: Petalite, kind: str) -> None:
    rows = json.loads(petalite("ls", kind, "--json").out)
    assert all({"name", "about"} <= set(row) for row in rows)
    assert {"formats": "nf4", "attention": "fa2", "compute": "bf16", "models": "vit_large_patch16_224"}[kind] in {
        row["name"] for row in rows
    }


def test_doctor_is_text_to_paste(petalite: Petalite) -> None:
    outcome = petalite("doctor")
    assert outcome.code == 0
    assert "nf4" in outcome.out
    assert str(Path.home()) not in outcome.out


def test_a_list_on_stdin(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    paths = "\n".join(str(path) for path in sorted((images / "test").rglob("*.png"))) + "\n"
    command = [
        sys.executable,
        "-m",
        "petalite",
        "predict",
        str(checkpoint),
        "-",
        "--out",
        str(tmp_path / "p.csv"),
        "--no-gallery",
    ]
    done = subprocess.run(command, input=paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "p.csv")
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 7


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['petalite', 'run', '--help']\nfrom petalite.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'timm', 'numpy', 'PIL', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_quantizing_leaves_the_parent_as_it_was(checkpoint: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    quantize(checkpoint, "nf4", tmp_path / "nf4")
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
