"""Which layers a plan gives to which format, and what it says about patterns that fit nothing."""

from __future__ import annotations

import pytest

from petalite.errors import PetaliteError
from petalite.plan import Plan, select

LAYERS = [
    "patch_embed.proj",
    *(f"blocks.{n}.{part}" for n in range(12) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "head",
]


def uniform(**options: object) -> Plan:
    return Plan.uniform("nf4", rest="bf16", layers=LAYERS, **options)  # type: ignore[arg-type]


def test_head_and_patch_embedding_are_left_alone_unless_asked() -> None:
    plan = uniform()
    assert plan.layers["head"] == plan.layers["patch_embed.proj"] == "bf16"
    assert set(plan.layers.values()) == {"nf4", "bf16"}
    assert plan.kept == ()
    assert uniform(include_head=True).layers["head"] == "nf4"


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("blocks.1", [name for name in LAYERS if name.startswith("blocks.1.")]),
        ("blocks.3.mlp.fc1", ["blocks.3.mlp.fc1"]),
        ("blocks.*.attn.proj", [f"blocks.{n}.attn.proj" for n in range(12)]),
        ("first_last", [name for name in LAYERS if name.startswith(("blocks.0.", "blocks.11."))]),
    ],
)
def test_patterns(pattern: str, kept: list[str]) -> None:
    assert select([pattern], LAYERS) == kept
    assert uniform(keep=[pattern]).kept == tuple(kept)


def test_a_pattern_that_names_nothing_is_an_error_with_the_nearest() -> None:
    with pytest.raises(PetaliteError, match=r"'blocks.12' names no layer .* blocks.0 to blocks.11"):
        uniform(keep=["blocks.12"])
    with pytest.raises(PetaliteError, match=r"did you mean 'first_last'"):
        uniform(keep=["first_lst"])


def test_a_plan_survives_json() -> None:
    plan = uniform(keep=["first_last"])
    assert Plan.from_dict(plan.as_dict()) == plan


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"schema": 2}, {"schema": 1, "format": 4, "rest": "bf16", "layers": {}},
     {"schema": 1, "format": "nf4", "rest": "bf16", "layers": {"head": 3}}],
)  # fmt: skip
def test_damaged_plans_are_refused(value: object) -> None:
    with pytest.raises(PetaliteError, match=r"plan\.json"):
        Plan.from_dict(value)
