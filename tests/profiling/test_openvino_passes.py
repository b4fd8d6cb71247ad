"""The CPU engine taken apart: its nodes' kinds and layers, and passes whose parts and gaps are the clock's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from petalite.engine import load
from petalite.measure.latency import nothing
from petalite.profiling.account import account
from petalite.profiling.openvino_passes import _Layers, layer_names, node_kind, operation, record
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize(
    ("name", "node_type", "kind"),
    [
        ("MatMul_13663/DequantizationMultiply", "FullyConnectedQuantizedLegacy", "products"),
        ("MatMul_13629/DequantizationMultiply", "Subgraph", "quantize"),
        ("FakeQuantize_13656", "Subgraph", "quantize"),
        ("Add_13713", "Subgraph", "elementwise"),
        ("MVN_13641", "MVN", "normalization"),
        ("attention/MatMul_13687", "Subgraph", "attention"),
        ("attention/Transpose_13690", "Transpose", "attention"),
        ("Squeeze_13678___attention/MatMul_13687", "Reorder", "copies"),
        ("Transpose_13672", "Transpose", "copies"),
        ("Unheard_1", "OfThis", "other"),
    ],
)
def test_nodes_are_sorted_by_type_and_by_what_they_were_made_from(name: str, node_type: str, kind: str) -> None:
    assert node_kind(name, node_type) == kind


def test_what_a_node_was_made_from_has_no_number() -> None:
    assert operation("MatMul_13663/DequantizationMultiply") == "MatMul"
    assert operation("attention/MatMul_1") == "MatMul"
    assert operation("Squeeze_13678___attention/MatMul_13687") == "Squeeze"


def test_products_have_their_layers_names() -> None:
    whole = layer_names(10)
    assert (whole[0], whole[1], whole[8], whole[-1]) == (
        "patch_embed.proj",
        "blocks.0.attn.qkv",
        "blocks.1.mlp.fc2",
        "head",
    )
    assert layer_names(11)[5:8] == ["blocks.1.attn.q", "blocks.1.attn.kv", "blocks.1.attn.proj"]
    assert layer_names(12) == layer_names(2) == []


def graph(*names: str) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(
            get_friendly_name=lambda name=name: name, get_type_name=lambda name=name: name.split("/")[-1].split("_")[0]
        )
        for name in names
    ]


def test_what_lies_between_two_products_belongs_to_the_second_or_to_the_block() -> None:
    products = [f"MatMul_{number}" for number in (10, 20, 30, 40, 50, 60)]
    layers = _Layers(graph(*products, "attention/MatMul_25", "MVN_13", "MVN_34", "MVN_54"))
    assert layers.untold is None
    expected = {
        ("Transpose_5", "copies"): ("patch_embed.proj", "copies"),
        ("Add_12", "elementwise"): ("patch_embed.proj", "elementwise"),
        ("MVN_13", "normalization"): ("blocks.0.norm1", "normalization"),
        ("Add_15", "elementwise"): ("blocks.0.norm1", "normalization"),
        ("MatMul_20/DequantizationMultiply", "products"): ("blocks.0.attn.qkv", "products"),
        ("MatMul_20/DequantizationMultiply", "quantize"): ("blocks.0.attn.qkv", "quantize"),
        ("attention/MatMul_25", "attention"): ("blocks.0.attn", "attention"),
        ("FakeQuantize_28", "quantize"): ("blocks.0.attn", "quantize"),
        ("Add_31", "products"): ("blocks.0.attn.proj", "products"),
        ("Add_32", "elementwise"): ("blocks.0", "elementwise"),
        ("FakeQuantize_36", "quantize"): ("blocks.0.norm2", "quantize"),
        ("FakeQuantize_45", "quantize"): ("blocks.0.mlp.act", "quantize"),
        ("MVN_54", "normalization"): ("norm", "normalization"),
        ("Add_61", "products"): ("head", "products"),
        ("nameless", "other"): (None, "other"),
    }
    for (name, kind), (layer, becomes) in expected.items():
        assert layers.of(name, kind) == (layer, becomes), name  # type: ignore[arg-type]
    assert "no ViT's" in str(_Layers(graph("MatMul_1", "MatMul_2")).untold)


def test_parts_and_gaps_are_the_clocks_and_every_layer_is_told(tmp_path: Path) -> None:
    stored = tiny_checkpoint(tmp_path / "tiny")
    spans = {name: (-4.0, 4.0) for name in stored.plan.layers if name.startswith("blocks.")}
    stored = replace(stored, plan=replace(stored.plan, activations=spans))
    classifier = load(stored, "cpu", compute="int8", engine="openvino")
    before = dict(classifier.runner._requests)  # type: ignore[attr-defined]
    recorded = record(classifier, torch.randn(9, 3, 32, 32), 0.05, nothing)  # a graph of eight and one of one
    assert recorded.untold is None and min(recorded.undisturbed_us) > 0
    for one in recorded.passes:
        parts_us = sum(step.us for step in one.steps)
        assert parts_us > 0 and one.wall_us <= max(one.wall_us, parts_us) == parts_us + one.gaps_us
    found = account(recorded)
    told = {entry["layer"] for entry in found["layers"]}
    inner = ("attn", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert {"patch_embed.proj", "head", *(f"blocks.{block}.{layer}" for block in (0, 1) for layer in inner)} <= told
    assert {"products", "attention", "normalization", "gaps"} <= {entry["kind"] for entry in found["kinds"]}
    assert before.items() <= classifier.runner._requests.items()  # type: ignore[attr-defined]
