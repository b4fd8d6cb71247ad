"""Trials: the quickest that agrees wins, once; what is on disk is used, and what is damaged there is not trusted."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from petalite.engine.trial import Choices, Run, Times, Trials, known, known_path, time_on_cpu, trials_for
from petalite.errors import PetaliteError
from petalite.files import read_json

TIMES = {"torch": 3.0, "ours": 2.0, "other": 2.5}


class Watch:
    """Says how long each candidate takes, and counts how often it is asked."""

    def __init__(self, times: Mapping[str, float] = TIMES) -> None:
        self.times, self.asked = times, 0

    def __call__(self, runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        self.asked += 1
        return {name: self.times[name] for name in runs}


def candidates(**results: Any) -> dict[str, Callable[[], Any]]:
    def make(result: Any) -> Callable[[], Any]:
        def run() -> Any:
            if isinstance(result, Exception):
                raise result
            return result

        return run

    return {name: make(result) for name, result in results.items()}


def test_the_quickest_is_chosen_once_and_kept_on_disk(tmp_path: Path) -> None:
    watch = Watch()
    trials = Trials(tmp_path / "trials" / "gpu.json", watch)
    runs = candidates(torch=1, ours=1, other=1)
    assert [trials.choose("a", runs), trials.choose("a", runs)] == ["ours", "ours"]
    assert watch.asked == 1
    assert read_json(tmp_path / "trials" / "gpu.json") == {"a": {"best": "ours", "us": TIMES}}
    again = Trials(tmp_path / "trials" / "gpu.json", watch)
    assert again.choose("a", runs) == "ours" and watch.asked == 1
    assert again.choose("b", runs) == "ours" and watch.asked == 2
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["gpu.json"]  # no temporary file is left


def test_what_fails_or_differs_loses_with_its_reason(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "gpu.json", Watch())
    runs = candidates(torch=1.0, ours=2.0, other=RuntimeError("no such tile\nlong trace"))
    assert trials.choose("a", runs, lambda one, other: one == other) == "torch"
    assert read_json(tmp_path / "gpu.json")["a"]["left_out"] == {
        "ours": "its result differs", "other": "RuntimeError: no such tile"
    }  # fmt: skip
    assert trials.choose("b", candidates(torch=ValueError("odd"), ours=2.0, other=2.0), lambda a, b: a == b) == "ours"
    with pytest.raises(PetaliteError, match=r"no way to compute c runs here: ValueError: odd$"):
        trials.choose("c", candidates(torch=ValueError("odd"), ours=RuntimeError("no")))


def test_no_room_to_try_is_no_reason_to_leave_a_candidate_out() -> None:
    trials = Trials(None, Watch())
    with pytest.raises(torch.OutOfMemoryError):
        trials.choose("a", candidates(torch=1, ours=torch.OutOfMemoryError("CUDA out of memory")))
    assert trials.choose("a", candidates(torch=1, ours=1)) == "ours"


def test_a_single_way_needs_no_trial(tmp_path: Path) -> None:
    watch = Watch()
    assert (
        Trials(tmp_path / "gpu.json", watch).choose("a", candidates(torch=RuntimeError("is not even run"))) == "torch"
    )
    assert watch.asked == 0 and not (tmp_path / "gpu.json").exists()


def test_of_two_as_quick_the_first_is_taken() -> None:
    assert Trials(None, Watch({"torch": 1.0, "ours": 0.99})).choose("a", candidates(torch=1, ours=1)) == "torch"


def test_a_choice_that_is_not_there_any_more_is_tried_again(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "gpu.json", Watch())
    assert trials.choose("a", candidates(torch=1, ours=1)) == "ours"
    assert trials.choose("a", candidates(torch=1, other=1)) == "other"


@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", '{"a": 1}', '{"a": {"best": 3}}', "\x00\x01", '{"a": {}}'])
def test_a_damaged_file_is_ignored_and_written_anew(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    trials = Trials(path, Watch())
    assert "trials of kernels are made again" in capsys.readouterr().err
    assert trials.choose("a", candidates(torch=1, ours=1)) == "ours"
    assert json.loads(path.read_text())["a"]["best"] == "ours"


def test_what_another_process_found_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    one, other = Trials(path, Watch()), Trials(path, Watch())
    one.choose("a", candidates(torch=1, ours=1))
    other.choose("b", candidates(torch=1, ours=1))
    assert set(read_json(path)) == {"a", "b"}


def test_a_cache_that_cannot_be_written_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    trials = Trials(tmp_path / "file" / "gpu.json", Watch())
    assert [trials.choose(key, candidates(torch=1, ours=1)) for key in "aab"] == ["ours"] * 3
    assert capsys.readouterr().err.count("trials of kernels are not kept") == 1


def test_the_hosts_clock_tells_slow_from_quick() -> None:
    times = time_on_cpu({"slow": lambda: time.sleep(0.004), "quick": lambda: None})
    assert times["slow"] > 3_000 > times["quick"]


def test_the_file_s_name_says_hardware_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 / MIG 1g.18gb")
    trials = trials_for(torch.device("cuda", 7))
    assert trials.path is not None
    assert trials.path.parent == Path(os.environ["PETALITE_CACHE"]) / "trials"
    assert trials.path.name.startswith("NVIDIA-H200-MIG-1g.18gb_torch-") and torch.__version__ in trials.path.name
    trials_for.cache_clear()


def test_while_a_graph_is_recorded_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    choices = Choices(Trials(None, watch), torch.device("cuda", 0))
    runs = candidates(torch=1, ours=1)
    asked = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choices.choose("a", lambda: asked.append("a") or runs) == "torch"
    assert watch.asked == 0 and choices.report() == {}
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert [choices.choose("a", lambda: asked.append("a") or runs) for _ in range(3)] == ["ours"] * 3
    assert watch.asked == 1 and len(asked) == 2 and choices.report() == {"a": "ours"}


def test_what_came_with_petalite_is_taken_where_it_runs(tmp_path: Path) -> None:
    def broken() -> Any:
        raise RuntimeError("does not compile here")

    timed: list[str] = []

    def measure(runs: Mapping[str, Run]) -> Times:
        timed.extend(runs)
        return dict.fromkeys(runs, 1.0)

    trials = Trials(tmp_path / "t.json", measure, known={"a": "two", "b": "broken", "c": "gone"})
    ways = {"one": lambda: 1, "two": lambda: 2, "broken": broken}
    assert trials.choose("a", ways) == "two" and not timed
    assert trials.choose("b", ways) == "one" and timed == ["one", "two"]
    assert trials.choose("c", ways) == "one" and timed == ["one", "two"] * 2


def test_choices_that_come_along_are_found_by_the_name_of_the_gpu() -> None:
    assert known("no such GPU") == {}
    assert known_path("NVIDIA H200").name == "NVIDIA-H200.json"
    for path in known_path("any").parent.glob("*.json"):
        choices = known(path.stem)
        assert choices and all(isinstance(name, str) for name in choices.values())


def test_candidates_are_prepared_together_before_one_runs(tmp_path: Path) -> None:
    order: list[str] = []

    def run(name: str) -> Callable[[], int]:
        return lambda: order.append(name) or 1

    runs = {"torch": run("torch"), "ours": run("ours")}
    trials = Trials(None, Watch(), known={"b": "ours"}, prepare=lambda runs: order.append(f"prepared {len(runs)}"))
    assert trials.choose("a", runs) == "ours"
    assert order == ["prepared 2", "torch", "ours"]
    trials.choose("a", runs), trials.choose("b", runs)
    assert order[3:] == ["ours"]  # what came along is seen to run, and needs no other


def test_while_kernels_are_compiled_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    choices = Choices(Trials(None, watch, known={"known": "other", "gone": "no more"}), torch.device("cpu"))
    ran: list[str] = []
    runs = {name: lambda name=name: ran.append(name) for name in ("torch", "ours", "other")}
    with monkeypatch.context() as patched:
        patched.setattr("petalite.engine.trial.compiling", lambda: True)
        assert [choices.choose(key, lambda: runs) for key in ("known", "gone", "new")] == ["other", "torch", "torch"]
    assert ran == ["other"]  # for its kernels: it will be run to see that it works
    assert watch.asked == 0 and choices.report() == {}
    assert choices.choose("new", lambda: runs) == "ours"
    ran.clear()
    choices.trials.known["new"] = "torch"
    assert choices.trials.expect("new", runs) == "ours" and not ran  # found here before what came along
