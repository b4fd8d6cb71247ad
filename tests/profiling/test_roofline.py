"""What layers compute, counted another way; rates and shares by hand; ceilings that are measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from petalite.measure.latency import nothing
from petalite.profiling import roofline as room
from petalite.profiling.roofline import group_of, measure_ceilings, roofline
from petalite.profiling.work import Work, of_layer, work
from tests.tiny import tiny_checkpoint


def test_operations_are_those_that_pytorch_counts(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    model = checkpoint.skeleton()
    model.load_state_dict(checkpoint.plain_tensors(), assign=True)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.randn(3, 3, 32, 32))
    found = work(checkpoint, 3, "fp32", "module")
    norms = sum(one.flops for name, one in found.items() if name.endswith(("norm1", "norm2")))
    assert sum(one.flops for one in found.values()) - norms == counter.get_total_flops()


def test_engines_leave_out_what_the_head_does_not_read(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    module, engine = (work(checkpoint, 2, "int8", name) for name in ("module", "openvino"))
    assert engine["blocks.0.mlp.fc1"] == module["blocks.0.mlp.fc1"]
    assert module["blocks.1.mlp.fc1"].flops == 17 * engine["blocks.1.mlp.fc1"].flops  # 16 patches and the class token
    together = of_layer(engine, "blocks.1.attn.qkv")
    assert together == engine["blocks.1.attn.q"] + engine["blocks.1.attn.kv"]
    assert of_layer(engine, "blocks.7.attn.qkv") is None
    whole = of_layer(engine, "blocks")
    assert whole is not None
    assert whole + engine["head"] + engine["patch_embed.proj"] == sum(engine.values(), Work(0.0, 0.0))


def test_merged_tokens_are_not_multiplied(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    merging = replace(checkpoint, plan=replace(checkpoint.plan, merge=(5, 0)))
    plain, merged = (work(one, 1, "fp32", "module") for one in (checkpoint, merging))
    assert merged["blocks.0.attn.qkv"] == plain["blocks.0.attn.qkv"]
    assert merged["blocks.0.mlp.fc1"].flops == pytest.approx(plain["blocks.0.mlp.fc1"].flops * 12 / 17)
    assert merged["blocks.1.attn"].flops == pytest.approx(plain["blocks.1.attn"].flops * (12 / 17) ** 2)


def test_bytes_shrink_with_codes(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    wide, narrow = (work(checkpoint, 1, compute, "module")["blocks.0.mlp.fc1"] for compute in ("fp32", "int8"))
    assert wide.bytes == 4 * (17 * 64 + 64 * 256 + 17 * 256)
    assert narrow.bytes == 17 * 64 + 64 * 256 + 2 * 17 * 256


def test_rates_are_shares_of_the_lower_ceiling() -> None:
    known = {"blocks.0.mlp.fc1": Work(4e9, 1e6), "blocks.1.mlp.fc1": Work(4e9, 1e6), "blocks.0.norm1": Work(1e6, 1e6)}
    account: dict[str, Any] = {
        "layers": [
            {"layer": "blocks.0.mlp.fc1", "ms": 1.5}, {"layer": "blocks.1.mlp.fc1", "ms": 2.5},
            {"layer": "blocks.0.norm1", "ms": 1.0}, {"layer": None, "ms": 3.0},
        ],
        "kinds": [{"kind": "products", "ms": 5.0}],
        "check": {"total_ms": 8.0},
    }  # fmt: skip
    found = roofline(account, known, {"tflops": 10.0, "copy_gb_s": 2.0})
    fc1, norm = found["groups"]
    assert (fc1["group"], fc1["ms"], fc1["tflops"], fc1["gb_s"]) == ("mlp.fc1", 4.0, 2.0, 0.5)
    assert (fc1["bound"], fc1["share_of_roof"]) == ("memory", pytest.approx(2 / 8))  # 4,000 operations a byte, 2 GB/s
    assert (norm["group"], norm["share_of_copy"], norm["bound"]) == ("norm1", pytest.approx(0.5), "memory")
    assert found["products"]["tflops"] == pytest.approx(8e9 / 5e9)
    assert found["total"]["share_of_products"] == pytest.approx(8.001e9 / 8e9 / 10)
    near = roofline(account, known, {"tflops": 4.0, "copy_gb_s": 2.0})["groups"][0]
    assert (near["bound"], near["share_of_roof"]) == ("products", pytest.approx(0.5))


def test_a_pass_without_layers_still_has_its_total() -> None:
    account = {"layers": None, "kinds": [{"kind": "other", "ms": 1.0}], "check": {"total_ms": 1.0}}
    found = roofline(account, {"head": Work(1e9, 1e9)}, {"tflops": 1.0, "copy_gb_s": 1.0})
    assert (found["groups"], found["products"]) == ([], None)
    assert found["total"]["tflops"] == pytest.approx(1.0)


def test_products_inside_one_kernel_of_all_blocks_have_no_rate_of_their_own() -> None:
    known = {"head": Work(1e6, 1e6), "blocks.0.mlp.fc1": Work(4e9, 1e6), "blocks.0.norm1": Work(1e6, 1e6)}
    account: dict[str, Any] = {
        "layers": [{"layer": "blocks", "ms": 2.0}, {"layer": "head", "ms": 0.5}],
        "kinds": [{"kind": "products", "ms": 0.5}, {"kind": "blocks", "ms": 2.0}],
        "check": {"total_ms": 2.5},
    }
    found = roofline(account, known, {"tflops": 10.0, "copy_gb_s": 2.0})
    assert found["products"] is None
    assert [(one["group"], one["tflops"]) for one in found["groups"]] == [
        ("blocks", pytest.approx(4.001e9 / 2e9)),
        ("head", pytest.approx(1e6 / 0.5e9)),
    ]


def test_ceilings_are_measured_on_a_square_and_on_the_models_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_SQUARE", {"cpu": 64})
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    found = measure_ceilings(checkpoint, "fp32", 2, torch.device("cpu"), nothing, seconds=0.0)
    assert [one["shape"] for one in found["products"]] == [
        [64] * 3,
        [34, 64, 192],
        [34, 64, 64],
        [34, 64, 256],
        [34, 256, 64],
    ]
    assert found["tflops"] == max(one["tflops"] for one in found["products"]) > 0
    assert found["copy_gb_s"] > 0 and "torch.mm" in found["tflops_of"]


@pytest.mark.parametrize(
    ("layer", "group"),
    [("blocks.11.mlp.fc1", "mlp.fc1"), ("blocks.3", "residuals"), ("blocks.1.attn.kv", "attn.qkv"), ("head", "head"),
     (None, "no layer")],
)  # fmt: skip
def test_blocks_share_their_layers_names(layer: str | None, group: str) -> None:
    assert group_of(layer) == group
