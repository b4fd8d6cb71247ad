"""`petalite profile` from a checkpoint to its folder, and the text of a profile."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from petalite.errors import PetaliteError
from petalite.measure.bench import Variant
from petalite.measure.kernels import KINDS
from petalite.profiling.memory_curve import Curve
from petalite.profiling.pictures import draw_pictures
from petalite.profiling.run import FILES, dissect
from petalite.profiling.steps import Pass, Step
from petalite.profiling.text import profile_text
from petalite.profiling.written import write_trace
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A tiny checkpoint taken apart once, in a process of its own, and the folder with what was written."""
    folder = tmp_path_factory.mktemp("profile")
    checkpoint = tiny_checkpoint(folder / "tiny")
    out = folder / "out"
    variant = Variant("tiny", checkpoint.path)
    return dissect(variant, 2, "cpu", threads=1, out=out, seconds=0.1), out


def test_all_there_is_to_know(profiled: tuple[dict[str, Any], Path]) -> None:
    found, _ = profiled
    assert found["total_ms"] == pytest.approx(sum(found[f"{kind}_ms"] for kind in KINDS))  # the contract's block
    anatomy, check = found["anatomy"], found["anatomy"]["check"]
    assert (found["info"]["engine"], found["batch_size"]) == ("openvino", 2)
    assert sum(entry["ms"] for entry in anatomy["kinds"]) == pytest.approx(check["accounted_ms"])
    assert check["adds_up"] is (abs(check["accounted_ms"] / check["total_ms"] - 1) <= 0.03)
    ceilings = found["roofline"]["ceilings"]
    assert ceilings["precision"] == "fp32" and ceilings["tflops"] > 0
    assert {"attn.qkv", "mlp.fc1", "attn"} <= {group["group"] for group in found["roofline"]["groups"]}
    memory = found["memory"]
    assert memory["kind"] == "rss" and [name for name, _ in memory["marks"]] == ["loaded", "first pass", "five passes"]
    assert max(held for _, held in memory["points"]) > 50e6
    assert "NVIDIA" in found["energy"]["reason"]


def test_its_folder(profiled: tuple[dict[str, Any], Path]) -> None:
    found, out = profiled
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert json.loads((out / "profile.json").read_text()) == found
    for name in ("layers", "roofline", "memory"):
        with Image.open(out / f"{name}.png") as picture:
            assert min(picture.size) > 400
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    assert {"patch_embed.proj", "layers"} <= {event["name"] for event in events} | {
        event["args"].get("name") for event in events
    }


def test_a_folder_that_is_there_is_not_overwritten(profiled: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    _, out = profiled
    variant = Variant("none", tmp_path / "missing")
    with pytest.raises(PetaliteError, match="is not empty"):
        dissect(variant, out=out)
    assert len(list(out.iterdir())) == len(FILES)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    with pytest.raises(PetaliteError, match="does not look like an output"):
        dissect(variant, out=tmp_path / "notes", force=True)
    with pytest.raises(PetaliteError, match="at least 1"):
        dissect(variant, 0)


def test_the_text_says_what_was_found(profiled: tuple[dict[str, Any], Path]) -> None:
    found = copy.deepcopy(profiled[0])
    found["anatomy"]["check"]["adds_up"] = True
    text = profile_text(found)
    assert "the parts add up" in text and "openvino engine, fp32" in text and "gaps (nothing runs)" in text
    assert "mlp.fc1" in text and "ceilings measured here" in text and "energy: not measured" in text
    found["anatomy"]["check"] |= {"adds_up": False, "difference": 0.071}
    found["anatomy"] |= {"layers": None, "layers_untold": "the order differed"}
    found["roofline"] = {"reason": "no product in fp8 runs on cpu"}
    found["energy"] = {"joules_per_image": 0.071, "watts": 480.0, "images": 100, "seconds": 2.5}
    text = profile_text(found)
    assert "DO NOT ADD UP" in text and "+7.1%" in text
    assert "cannot be told, since the order differed" in text
    assert "no product in fp8" in text and "0.071 J an image at 480 W" in text


def test_pictures_are_those_that_there_are_figures_for(profiled: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    found = copy.deepcopy(profiled[0])
    found["anatomy"]["layers"] = None
    found["roofline"] = {"reason": "none"}
    assert [path.name for path in draw_pictures(found, tmp_path)] == ["memory.png"]


def test_steps_of_one_layer_are_one_event(tmp_path: Path) -> None:
    steps = [
        Step("mm", "products", "head", 0, 5),
        Step("add", "elementwise", "head", 6, 2),
        Step("x", "other", None, 8, 1),
    ]
    write_trace(Pass(steps, 10, 1), tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    layers = [(event["name"], event["ts"], event["dur"]) for event in events if event.get("cat") == "layer"]
    assert layers == [("head", 0, 8), ("unknown", 8, 1)]


def test_memory_is_watched_from_the_beginning_to_the_end() -> None:
    with Curve(torch.device("cpu")) as curve:
        held = torch.ones(40_000_000)
        curve.mark("taken")
    points = curve.as_dict()["points"]
    assert points[-1][1] - points[0][1] > 100e6 and held.nbytes == 160_000_000
    assert points[0][0] < curve.as_dict()["marks"][0][1] <= points[-1][0]
