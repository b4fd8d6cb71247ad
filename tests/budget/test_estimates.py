"""What plans are estimated to cost where one engine multiplies all layers alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petalite.budget import estimates
from petalite.engine.choice import Choice
from petalite.merging import merged_counts
from tests.tiny import tiny_checkpoint, tiny_pixels


def test_on_the_fused_engine_time_does_not_depend_on_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(estimates, "engine_unavailable", lambda checkpoint, device: None)
    monkeypatch.setattr(
        estimates, "choose_compute", lambda *arguments: asked.append(arguments) or Choice("bf16", "it can")
    )
    monkeypatch.setattr(estimates, "layer_times", lambda *_: pytest.fail("modules are not what runs"))
    parent = tiny_checkpoint(tmp_path / "parent")
    problem = estimates.estimate(
        parent, tiny_pixels(16), ("fp32", "int8-channel", "int4"), objective="latency", merge=False,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert asked == [("auto", "mixed", None, "cpu")]
    assert {value for formats in problem.ms.values() for value in formats.values()} == {0.0}
    # then of two formats that damage as little the smaller one is taken
    chosen = problem.solve(most=1e9)
    assert chosen is not None and chosen.ms == problem.merges[0].base_ms > 0
    assert {chosen.plan.layers[name] for name in problem.ms} == {"int4"}


@pytest.mark.parametrize(
    ("depth", "shares", "expected"),
    [
        (12, (0.5, 0.5), {3: 98, 7: 49}),
        (12, (0.5, 0.5, 0.5), {3: 98, 7: 49, 9: 24}),
        (24, (0.3, 0.3), {7: 58, 15: 41}),
        (12, (0.9, 0.9), {3: 98, 7: 49}),  # a block merges half of what reaches it at most
        (2, (0.5, 0.5, 0.5), {0: 98, 1: 49}),
        (1, (0.5, 0.5, 0.5), {0: 98}),
    ],
)
def test_few_large_merges_stand_at_the_same_depth_of_every_model(
    depth: int, shares: tuple[float, ...], expected: dict[int, int]
) -> None:
    counts = estimates.large_merges(shares, depth, 196)
    assert len(counts) == depth
    assert {block: count for block, count in enumerate(counts) if count} == expected
    assert merged_counts(counts, 196) == counts


def test_few_large_merges_are_offered_beside_many_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quickest of what damages little enough is chosen, whichever kind it is."""
    large = "(0, 4, 0)"
    monkeypatch.setattr(estimates, "MERGED_SHARES", (0.3,))
    monkeypatch.setattr(estimates, "LARGE_SHARES", ((0.0, 0.25), (0.5, 0.5)))
    monkeypatch.setattr(
        estimates, "interleaved", lambda runs, device: {name: 1.0 if name == large else 2.0 for name in runs}
    )
    monkeypatch.setattr(estimates, "engine_unavailable", lambda checkpoint, device: None)
    parent = tiny_checkpoint(tmp_path / "parent", depth=3)
    problem = estimates.estimate(
        parent, tiny_pixels(4), ("int8-channel",), objective="throughput", merge=True, device=torch.device("cpu")
    )
    offered = {merge.counts: merge for merge in problem.merges}
    assert list(offered) == [(), (2, 2, 2), (0, 4, 0), (8, 4, 0)]
    assert offered[0, 4, 0].shares == (1.0, 14 / 16, 12 / 16)
    assert 0 < offered[0, 4, 0].damage < offered[8, 4, 0].damage
    chosen = problem.solve(most=1e9)
    assert chosen is not None and chosen.plan.merge == (0, 4, 0)
    gentle = problem.solve(most=offered[0, 4, 0].damage / 2)
    assert gentle is None or gentle.plan.merge != (0, 4, 0)
    said = capsys.readouterr().err
    assert "merge 2 a block: 1.00x as fast" in said and "merge 8 in block 0, 4 in block 1: 1.00x" in said
