"""What a pass consists of: steps, each with its kind, its layer and its time; and how several passes become one account.

    Step("aten::addmm", "products", "blocks.0.attn.qkv", start_us=12.0, us=80.0)
    Recorded(passes=[Pass(steps, wall_us=5100.0, gaps_us=210.0)], …)

A step is a kernel on a GPU, an operator's own time on a CPU, a node of the CPU engine's graph.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from petalite.measure.kernels import kind_of

StepKind = Literal[
    "products", "attention", "blocks", "quantize", "normalization", "elementwise", "copies", "merging", "other"
]  # fmt: skip
#: In the order of tables and pictures; `gaps` (nothing ran) comes last.
KINDS: tuple[StepKind, ...] = (
    "products", "attention", "blocks", "quantize", "normalization", "elementwise", "copies", "merging", "other",
)  # fmt: skip
GAPS = "gaps"
#: What a table calls steps that belong to no layer: putting tokens together, copies around a graph.
NO_LAYER = "no layer"
WORDS = {
    "products": "matrix products",
    "attention": "attention",
    "blocks": "blocks in one kernel",
    "quantize": "quantize, dequantize",
    "normalization": "normalization",
    "elementwise": "GELU, residuals",
    "copies": "copies, layout",
    "merging": "token merging",
    "other": "other",
    GAPS: "gaps (nothing runs)",
}
#: The contract's kinds as they are called here.
_CONTRACT: dict[str, StepKind] = {"matmul": "products", "attention": "attention", "dequantize": "quantize"}
#: What the contract calls `other`, told apart; Petalite's own kernels by their whole names.
_FINER: tuple[tuple[StepKind, re.Pattern[str]], ...] = (
    ("blocks", re.compile(r"^blocks_at_once\b")),
    ("products", re.compile(r"cublas", re.I)),  # sums of a product's parts, and what is done to them
    ("normalization", re.compile(r"layer_?norm|^_norm\b|native_norm|rms_?norm|batch_norm", re.I)),
    ("quantize", re.compile(r"^_(flat|rows)\b", re.I)),
    ("merging", re.compile(r"^_(match|units|merge)\b", re.I)),
    (
        "copies",
        re.compile(
            r"memcpy|memset|copy|^aten::(_?to|contiguous|clone|cat|stack|fill_|zero_|empty\w*|reshape|_reshape_alias|"
            r"view|_unsafe_view|transpose|permute|t|select|slice|narrow|unbind|split\w*|unsqueeze|squeeze|expand\w*|"
            r"flatten|as_strided|detach|alias|chunk|index\w*|gather)\b|CatArray|FillFunctor|^_patches\b|direct_copy",
            re.I,
        ),
    ),
    (
        "elementwise",
        re.compile(
            r"gelu|relu|silu|aten::(add|sub|mul|div|rsub|sigmoid|tanh|exp|log|mean|sum|where)\w*|elementwise|"
            r"reduce_kernel|triton_(poi|red|per)",
            re.I,
        ),
    ),
)


@dataclass(frozen=True)
class Step:
    """name: of the kernel, operator or node. layer: timm's name, None where it is not told. us: its own time."""

    name: str
    kind: StepKind
    layer: str | None
    start_us: float
    us: float


@dataclass(frozen=True)
class Pass:
    """One pass under the profiler. wall_us: the host's clock around it. gaps_us: of that, when no step ran."""

    steps: Sequence[Step]
    wall_us: float
    gaps_us: float


@dataclass
class Recorded:
    """Passes with and without the profiler, in turn.

    undisturbed_us: passes without it. untold: why layers are not known, None where they are. clock: how times were taken,
    a sentence. notes: what a reader has to know besides.
    """

    passes: list[Pass]
    undisturbed_us: list[float]
    untold: str | None
    clock: str
    notes: list[str] = field(default_factory=list)


def finer_kind(name: str, scope: StepKind | None = None) -> StepKind:
    """The kind of a step by its name, else by that of what it ran in: a copy inside a product is part of the product."""
    if scope == "attention":
        return "attention"
    own = kind_of(name)
    if own is not None:
        return _CONTRACT[own]
    if scope == "products" or scope == "quantize":
        return scope
    found = next((kind for kind, pattern in _FINER if pattern.search(name)), None)
    if found is not None:
        return found
    return scope or "other"
