"""Operators and kernels of hand-made traces: whose time is whose, which pass and layer they belong to, what is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from petalite.errors import PetaliteError
from petalite.profiling.trace import PASS, cpu_steps, kernel_steps, nested, parse, read_trace
from tests.profiling.conftest import a_pass, launched, layer, operator

LINEAR = [operator("aten::linear", 10, 50), operator("aten::addmm", 20, 30), operator("aten::empty", 22, 2)]


def test_an_operators_own_time_is_what_is_not_inside_others() -> None:
    trace = parse([a_pass(0, 100), *LINEAR, operator("aten::gelu", 70, 10), operator("aten::gelu", 200, 10)])
    steps, between = cpu_steps(trace, trace.spans(PASS)[0])
    assert [(step.name, step.us) for step in steps] == [
        ("aten::linear", 20), ("aten::addmm", 28), ("aten::empty", 2), ("aten::gelu", 10),
    ]  # fmt: skip
    assert between == 40
    assert sum(step.us for step in steps) + between == 100
    assert [step.kind for step in steps] == ["products", "products", "products", "elementwise"]


def test_what_the_profiler_takes_falls_to_what_is_around() -> None:
    trace = parse([a_pass(0, 100), *LINEAR])
    steps, between = cpu_steps(trace, trace.spans(PASS)[0], cost_us=1)
    assert [step.us for step in steps] == [19, 27, 2]
    assert between == 49
    steps, between = cpu_steps(trace, trace.spans(PASS)[0], cost_us=100)
    assert [step.us for step in steps] == [0, 0, 2] and between == 0


def test_operators_of_other_threads_and_passes_are_not_counted() -> None:
    other = {**operator("aten::mm", 10, 20), "tid": 2}
    trace = parse([a_pass(0, 100), other, operator("aten::mm", 90, 20)])
    assert cpu_steps(trace, trace.spans(PASS)[0]) == ([], 100)


def test_the_innermost_layer_counts() -> None:
    annotations = [layer("blocks.0", 5, 80), layer("blocks.0.attn", 10, 30), layer("blocks.0.attn.qkv", 12, 10)]
    operators = [operator("aten::mm", 13, 5), operator("aten::bmm", 25, 5), operator("aten::add", 60, 5)]
    trace = parse([a_pass(0, 100), *annotations, *operators, operator("aten::mean", 90, 5)])
    steps, _ = cpu_steps(trace, trace.spans(PASS)[0])
    assert [step.layer for step in steps] == ["blocks.0.attn.qkv", "blocks.0.attn", "blocks.0", None]


def test_kernels_belong_to_the_pass_that_launched_them_and_leave_gaps() -> None:
    events = [
        a_pass(0, 100),
        layer("head", 0, 3),
        *launched("nvjet_hsh_256x128", 1, 10, 30, 1),
        *launched("_norm", 5, 35, 15, 2),  # overlaps the first by 5
        *launched("_rows", 7, 60, 10, 3),
        *launched("_norm", 150, 160, 10, 4),
    ]
    trace = parse(events)
    steps, gaps = kernel_steps(trace, trace.spans(PASS)[0])
    assert [(step.kind, step.us, step.layer) for step in steps] == [
        ("products", 30, "head"), ("normalization", 10, None), ("quantize", 10, None),
    ]  # fmt: skip
    assert gaps == 100 - 50


def test_a_kernel_that_waits_inside_another_has_no_time_of_its_own() -> None:
    events = [
        a_pass(0, 100),
        *launched("_product", 1, 10, 30, 1),
        *launched("_norm", 5, 20, 10, 2),
        *launched("_rows", 7, 38, 12, 3),
    ]
    trace = parse(events)
    steps, gaps = kernel_steps(trace, trace.spans(PASS)[0])
    assert [step.us for step in steps] == [30, 0, 10]
    assert sum(step.us for step in steps) + gaps == 100


def test_scopes_end_with_their_operators() -> None:
    norm, linear, nested_copy = (
        operator("aten::native_layer_norm", 0, 10),
        operator("aten::linear", 20, 30),
        operator("aten::copy_", 25, 5),
    )
    kernels = [launched("mystery", at, 40 + at, 1, number) for number, at in enumerate((2, 12, 22, 26, 40, 60))]
    trace = parse([a_pass(0, 200), norm, linear, nested_copy, *(event for pair in kernels for event in pair)])
    steps, _ = kernel_steps(trace, trace.spans(PASS)[0])
    assert [step.kind for step in steps] == ["normalization", "other", "products", "products", "products", "other"]


def test_a_kernel_that_does_not_say_what_it_is_has_the_kind_of_what_launched_it() -> None:
    copy = "void at::native::elementwise_kernel<128, 2>"
    attention = operator("aten::_scaled_dot_product_attention_math", 1, 20)
    inside = operator("aten::mul", 2, 5)
    norm = operator("aten::native_layer_norm", 30, 5)
    events = [a_pass(0, 100), attention, inside, norm, *launched(copy, 3, 40, 5, 1), *launched("mystery", 31, 50, 5, 2)]
    trace = parse(events)
    steps, _ = kernel_steps(trace, trace.spans(PASS)[0])
    assert [step.kind for step in steps] == ["attention", "normalization"]


def test_graph_kernels_share_the_launch_of_their_graph() -> None:
    replay = launched("_whole", 1, 10, 30, 9)
    trace = parse([a_pass(0, 100), *replay, {**replay[1], "name": "_product", "ts": 45, "dur": 20}])
    steps, gaps = kernel_steps(trace, trace.spans(PASS)[0])
    assert [(step.name, step.kind) for step in steps] == [("_whole", "attention"), ("_product", "products")]
    assert gaps == 50


def test_nesting_is_by_time() -> None:
    spans = parse([operator("a", 0, 10), operator("b", 2, 3), operator("c", 5, 5), operator("d", 10, 1)]).operators
    roots = nested(spans)
    assert [(root.name, [child.name for child in root.children]) for root in roots] == [("a", ["b", "c"]), ("d", [])]


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"traceEvents": None})])
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(PetaliteError, match="is not a Chrome trace"):
        read_trace(path)
