"""The shell: what <TAB> offers and how, help with an example in every verb, lists of what there is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from petalite.attention import BACKENDS
from petalite.cli import app as application
from petalite.cli import complete
from petalite.export import INPUTS, TARGETS
from petalite.formats import FORMATS
from tests.command import Petalite, petalite

__all__ = ["petalite"]


def completed(words: str, shell: str = "bash") -> list[str]:
    """What the shell is told for a line of words, the last of which is being written."""
    parts = words.split(" ")
    environment = {**os.environ, "_PETALITE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words,
                   "COMP_WORDS": words, "COMP_CWORD": str(len(parts) - 1), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}  # fmt: skip
    code = "import sys; sys.argv = ['petalite']; from petalite.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_verbs_are_completed(shell: str) -> None:
    found = " ".join(completed("petalite e", shell))
    assert "evaluate" in found and "export" in found and "quantize" not in found


def test_values_are_completed() -> None:
    assert completed("petalite export runs/fp32 --to o") == ["onnx", "openvino"]
    assert "recipes" in completed("petalite ls ")


def test_names_are_those_of_the_registries() -> None:
    assert set(complete.formats("")) == set(FORMATS)
    assert complete.formats("nf4,int8-c") == ["nf4,int8-channel"]
    assert set(BACKENDS) < set(complete.attention(""))
    assert "vit_large_patch16_224" in complete.models("vit_large")
    assert set(complete.targets("")) == set(TARGETS) and set(complete.inputs("")) == set(INPUTS)


def test_names_are_kept_until_something_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PETALITE_CACHE", str(tmp_path))
    assert complete.formats("nf") == ["nf4"]
    monkeypatch.setattr(complete, "_formats", lambda: ["nf5"])
    assert complete.formats("nf") == ["nf4"]
    monkeypatch.setattr(complete, "_version", lambda package: "another")
    assert complete.formats("nf") == ["nf5"]
    next((tmp_path / "completion").glob("*.json")).write_text("cut sho")
    monkeypatch.setenv("PETALITE_CACHE", "/dev/null/nowhere")  # a cache that cannot be written
    assert complete.formats("nf") == ["nf5"]


def test_folders_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos/train", "phones", ".hidden"):
        Path(name).mkdir(parents=True)
    assert complete.data("ph") == ["phones/", "photos/"]
    assert complete.data("photos/") == ["photos/train/"]
    assert complete.data("") == ["digits", "phones/", "photos/"]


def test_every_verb_has_an_example(petalite: Petalite) -> None:
    verbs = [[command.name or command.callback.__name__] for command in application.app.registered_commands]  # type: ignore[union-attr]
    verbs += [["data", command.name or ""] for command in application.data_app.registered_commands]
    for verb in verbs:
        shown = petalite(*verb, "--help").out
        assert f"Example: petalite {' '.join(verb)}" in " ".join(shown.split()), verb
    assert {"export", "push", "compare"} < {verb[0] for verb in verbs}
    assert {verb[0] for verb in verbs} - {"check", "fetch"} <= {*application._ORDER, "data"}


@pytest.mark.parametrize(("kind", "name"), [("recipes", "digits.toml"), ("targets", "openvino")])
def test_ls_lists_what_there_is(petalite: Petalite, kind: str, name: str) -> None:
    rows = {Path(row["name"]).name: row for row in json.loads(petalite("ls", kind, "--json").out)}
    assert rows[name]["runs"] and rows[name]["reason"] is None
    if kind == "recipes":
        assert all(
            re.search(r"\. (Measured: |Not measured here, because ).{20}", row["about"]) for row in rows.values()
        )


def test_ls_says_why_a_recipe_does_not_run(petalite: Petalite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("recipes/broken.toml").write_text("epoch = 3\n")
    Path("recipes/gpu.toml").write_text('data = "digits"\nmodel = "m"\nvariants = ["fp32", "nf4-cudnn"]\n')
    rows = {row["name"]: row for row in json.loads(petalite("ls", "recipes", "--json", "--device", "cpu").out)}
    assert "epoch" in rows["recipes/broken.toml"]["reason"]
    assert "cudnn runs on CUDA only" in rows["recipes/gpu.toml"]["about"]
