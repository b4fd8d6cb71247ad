"""Every command and code block of README, CONTRIBUTING and docs/ is run, in a folder like the one its reader has.

What stands in for the reader's own: `flowers102/` and `photos/` are a few coloured squares, the embedded digits are thinned
out, every model is a two-block ViT. A line is run as it is typed; `SMALLER` puts options behind it that make the same work
short, and the processes in which variants are measured answer from this one. What cannot run here is in `NOT_RUN`, with
the reason, and is checked as far as it goes: the options are parsed, the target or script is there. A block or line that
nothing accounts for fails.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from PIL import Image

from petalite import quantize, train
from petalite.cli.app import app
from petalite.data import digits_folder
from petalite.engine import load
from petalite.measure.process import Worker
from petalite.measure.worker import Session
from petalite.recipe import TrainRecipe
from tests.command import Petalite, petalite
from tests.documents import PAGES, ROOT, Block, blocks, commands
from tests.report.synthetic import write_study
from tests.tiny import tiny_checkpoint, tiny_images

__all__ = ["petalite"]

MODEL = "tiny"
SERVED = "http://127.0.0.1:8000"  # what the pages ask
_SHORT = ["--epochs", "1", "--variants", "fp32,nf4-fa2", "--force"]
_TINY = ["--model", MODEL, "--image-size", "32", "--method", "head", *_SHORT]
#: Put behind what is typed: the last of two equal options counts.
SMALLER = {
    "run": _TINY,
    "run recipes/digits.toml": _SHORT,
    "search": [
        "--tries",
        "1",
        "--images",
        "16",
        "--formats",
        "int8-channel,int4",
        "--calibrate",
        "nearest",
        "--max-drop",
        "50",
    ],
    "train": ["--epochs", "1"],
    "bench": ["--throughput-batches", "1", "--rounds", "1"],
}
#: What a long line made on one page, for another page on which the same line stands.
DONE: dict[str, Path] = {}
#: Verbs that may end with 1 on coloured squares: nothing certified, a gate that closes, an attention that is not there.
MAY_SAY_NO = ("search", "compare", "doctor")
#: Lines that begin so are not run here.
NOT_RUN = {
    "petalite profile": "measures the device's ceilings for seconds, in a process of its own; its own tests run it",
    "petalite serve": "until it is stopped; on docs/serve.md a server answers, and tests/serve/ holds all else about it",
    "petalite push": "needs a hub; tests/export/test_push.py has a local one",
    "petalite predict ray": "needs Ray; tests/prediction/test_cluster.py",
    "petalite serve ray": "needs Ray; tests/serve/",
    "petalite extending": "the toy format is not there; tests/test_extending.py runs this page",
    "make": "sets up, tests or builds everything; the target is there",
    "python -m pytest": "this is it; tests/test_extending.py runs the one for toys",
    "python benchmarks/": "measures for minutes; its options are parsed",
    "torchrun": "several processes; tests/training/ starts them",
    "compute-sanitizer": "needs an NVIDIA GPU and CUDA's tools; the tests that it runs are in tests/gpu/",
    "docker": "needs Docker; the Dockerfile and its target are there",
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages speak of: photos, studies, checkpoints, shards, lists."""
    root = tmp_path_factory.mktemp("documents")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PETALITE_CACHE", str(root / "cache"))
        for split, count in {"train": 16, "valid": 4, "test": 8}.items():
            for folder in (digits_folder() / split).iterdir():
                for extra in sorted(folder.iterdir())[count:]:
                    extra.unlink()
        digits, flowers = "digits", tiny_images(root / "flowers102", train=8, valid=4, test=8)
        for photo in sorted((flowers / "train").rglob("*.png")):
            place = root / "photos" / photo.parent.name
            place.mkdir(parents=True, exist_ok=True)
            Image.open(photo).save(place / f"{photo.stem}.jpg")
        recipe = TrainRecipe(method="full", epochs=24, batch_size=16, lr=0.003, flip=False, augment="none")
        tiny_checkpoint(root / MODEL)
        for name, data in {"demo": digits, "flowers": str(flowers)}.items():
            classes = tuple(map(str, range(10))) if name == "demo" else ("daisy", "rose", "tulip")
            start = tiny_checkpoint(root / "start" / name, classes=classes)
            write_study(root / "runs" / name, photos=False)
            for other in ("tuesday", "photos", "candidate") if name == "demo" else ("monday", "released"):
                write_study(root / "runs" / other, photos=False)
            trained = train(data, str(start.path), out=root / "start" / f"{name}-trained", recipe=recipe, device="cpu")
            shutil.copytree(trained.path, root / "runs" / name / "checkpoints" / "fp32")
            for format in ("nf4", "int8"):
                quantize(trained, format, root / "runs" / name / "checkpoints" / format)
        for format in ("int8-channel", "int4", "int3"):
            place = root / "runs" / ("int3" if format == "int3" else f"q/{format}")
            quantize(root / "runs" / "flowers" / "checkpoints" / "fp32", format, place)
    (root / "shards").mkdir()
    photos = sorted((root / "photos").rglob("*.jpg"))
    with tarfile.open(root / "shards" / "0.tar", "w") as shard:
        for photo in photos[:4]:
            shard.add(photo, photo.name)
    (root / "list.csv").write_text("path\n" + "".join(f"{photo}\n" for photo in photos[:3]))
    shutil.copy(photos[0], root / "photo.jpg")
    shutil.copytree(ROOT / "recipes", root / "recipes")
    return root


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it for one page, and the measuring processes of this page in this process."""
    place = shutil.copytree(prepared, tmp_path / "reader")
    monkeypatch.chdir(place)
    monkeypatch.setenv("PETALITE_CACHE", str(place / "cache"))

    def start(self: Any, *_: object, **__: object) -> None:
        self.session, self._process = Session(load, lambda: None), SimpleNamespace(poll=lambda: None)

    monkeypatch.setattr(Worker, "__init__", start)

    def ask(self: Any, name: str, **arguments: Any) -> Any:
        shorter = {"samples": 2, "seconds": 0.01}
        arguments |= {key: value for key, value in shorter.items() if key in arguments}
        return getattr(self.session, name)(**arguments) if name != "warm_up" else {}

    monkeypatch.setattr(Worker, "_ask", ask)
    monkeypatch.setattr(Session, "_release", lambda self: None)
    monkeypatch.setattr(Worker, "close", lambda self, patience_s=0.0: None)
    monkeypatch.setattr(Worker, "printed", lambda self: [])
    return place


@pytest.fixture(scope="session")
def server(prepared: Path) -> Iterator[str]:
    """What `petalite serve` starts, on a free port, for the lines that ask it."""
    line = [sys.executable, "-c", "from petalite.cli import main; main()", "serve", "runs/demo/checkpoints/int8"]
    options = ["--port", "0", "--workers", "1", "--threads", "1"]
    with subprocess.Popen(
        [*line, *options], cwd=prepared, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split(" answers")[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def reason_not_to_run(words: list[str], page: Path) -> str | None:
    """Why a line is only checked; None when it runs."""
    line = " ".join(words)
    verb = words[1] if len(words) > 1 else ""
    if words[0] == "petalite" and page.name == "extending.md":
        return NOT_RUN["petalite extending"]
    for verb_of, sign in (("predict", "--on ray"), ("serve", "--on ray"), ("export", "--to pt2")):
        if verb == verb_of and sign in line:
            return NOT_RUN[f"petalite {verb_of} {sign.split()[1]}"]
    return next((reason for start, reason in NOT_RUN.items() if line.startswith(start)), None)


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be said of a line that is not run."""
    first, rest = words[0], words[1:]
    if first == "petalite" and not rest[0].startswith("--"):
        command: Any = typer.main.get_command(app)
        context = command.make_context("petalite", [], resilient_parsing=True)
        while hasattr(command, "commands"):
            name, *rest = rest
            command = command.commands[name]
            context = command.make_context(
                name, list(rest), parent=context, resilient_parsing=hasattr(command, "commands")
            )
    elif first == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(rest) <= set(targets), f"no target {rest} in the Makefile"
    elif first == "python" and rest[0].startswith("benchmarks/"):
        parse_only(ROOT / rest[0], rest[1:], monkeypatch)
    elif first == "docker" and rest[0] == "build":
        target = rest[rest.index("--target") + 1]
        assert re.search(rf"AS {target}$", (ROOT / rest[rest.index("-f") + 1]).read_text(), re.M)
    elif first == "kubectl":
        assert (ROOT / rest[rest.index("-f") + 1]).is_file()
    elif first == "pip":
        for extra in re.findall(r"petalite\[(\w+)\]", " ".join(rest)):
            assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.M), f"no extra {extra}"


class Parsed(Exception):
    """The options of a script were accepted."""


def parse_only(script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script as far as its options."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: Any) -> None:
        parse(self, *given)
        raise Parsed

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        patched.setattr(sys, "argv", [str(script), *arguments])
        patched.setattr(signal, "signal", lambda *_: None)
        patched.syspath_prepend(script.parent)
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name="__main__")


def run_petalite(words: list[str], petalite: Petalite, block: Block) -> None:
    """A line of petalite in this process, its outputs of an earlier block out of the way."""
    verb = words[1]
    if "--out" in words and not {"--resume", "--force"} & set(words):
        out = Path(words[words.index("--out") + 1])
        if out.is_dir():
            shutil.rmtree(out)
        out.unlink(missing_ok=True)
    shorter = SMALLER.get(" ".join(words[1:3]), SMALLER.get(verb, ()))
    if verb == "train" and any(word.startswith("vit_") for word in words):
        shorter = [*shorter, "--model", MODEL]
    if "--merge" in words and "," in words[words.index("--merge") + 1]:
        shorter = [*shorter, "--merge", "2"]  # a number for each of 12 blocks does not fit the stand-in's
    out, line = Path(words[words.index("--out") + 1]) if "--out" in words else None, shlex.join(words)
    if verb in ("run", "search") and line in DONE and out:
        shutil.copytree(DONE[line], out)
        return
    outcome = petalite(*words[1:], *shorter)
    allowed = (0, 1) if verb in MAY_SAY_NO else (0,)
    assert outcome.code in allowed, f"{block.where}: {line}\n{outcome.err}"
    if out:
        DONE[line] = out.absolute()


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_what_a_page_says_works(
    page: Path, folder: Path, petalite: Petalite, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    asks = any("curl" in block.text or "InferenceClient" in block.text for block in blocks(page))
    url = request.getfixturevalue("server") if asks else SERVED
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # its client asks a server of this machine
    for block in blocks(page):
        if block.language == "python":
            if page.name == "extending.md":
                continue  # tests/test_extending.py writes them as the files that they are
            text = block.text.replace(SERVED, url)
            exec(compile(text, block.where, "exec"), {"__name__": "__main__"})
        elif block.language == "":
            for line in commands(block):
                run_line(line.replace(SERVED, url), block, petalite, monkeypatch)
        else:
            assert block.language == "text", f"{block.where}: nobody accounts for {block.language}"


def run_line(line: str, block: Block, petalite: Petalite, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)
    if "|" in words:  # A | petalite …: what A prints is what it reads
        before, words = words[: words.index("|")], words[words.index("|") + 1 :]
        printed = subprocess.run(before, capture_output=True, text=True, check=True).stdout
        monkeypatch.setattr(sys, "stdin", StringIO(printed))
    if reason_not_to_run(words, block.page):
        check(words, monkeypatch)
    elif words[0] == "petalite":
        run_petalite(words, petalite, block)
    elif words[0] == "curl":
        done = subprocess.run([*words, "--fail", "--silent"], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and '"score"' in done.stdout, f"{block.where}: {line}\n{done.stderr}"
    else:
        pytest.fail(f"{block.where}: nobody accounts for the line: {line}")


def test_every_reason_not_to_run_is_still_needed() -> None:
    reasons = {
        reason_not_to_run(shlex.split(line), page)
        for page in PAGES
        for block in blocks(page)
        if block.language == ""
        for line in commands(block)
    }
    assert {start for start, reason in NOT_RUN.items() if reason not in reasons} == set()


def test_a_line_that_is_wrong_is_noticed(petalite: Petalite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    block = Block(ROOT / "README.md", 1, "", "")
    with pytest.raises(AssertionError, match="no target"):
        run_line("make everything", block, petalite, monkeypatch)
    with pytest.raises(SystemExit):
        run_line("python benchmarks/sizes.py vit_tiny --no-such-option", block, petalite, monkeypatch)
    with pytest.raises(Exception, match="No such option"):
        run_line("petalite serve runs/demo --no-such-option", block, petalite, monkeypatch)
    with pytest.raises(AssertionError, match="petalite verify"):
        run_line(f"petalite verify {tmp_path}/missing", block, petalite, monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="nobody accounts"):
        run_line("rm -rf runs", block, petalite, monkeypatch)
