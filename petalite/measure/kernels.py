"""Where the time of a forward pass goes: attention, matrix products, dequantization, the rest; and what attention ran.

    profile(forward, wait, torch.device("cpu"))
    # {"total_ms": 9.6, "attention_ms": 1.4, "matmul_ms": 6.2, "dequantize_ms": 0.0, "other_ms": 2.0,
    #  "attention_ran": "fa2", "attention_kernel": "aten::_scaled_dot_product_flash_attention_for_cpu", …}

On CUDA the times are those of the kernels on the device, by their real names; on a CPU the self-times of PyTorch's
operators (Python between them is not in the total), or of the nodes of the CPU engine's graph. All carry the profiler's
own overhead: read them as shares, and take speed from `latency`. How a kernel or operator is sorted:

- *attention*: anything inside an attention operator, fused attention kernels, and the softmax and batched products of
  attention written out (in a ViT nothing else multiplies two activations);
- *matmul*: matrix products by name, and what belongs to a Linear or to the patch embedding's convolution. An operator
  that unpacks weights *while* it multiplies (bitsandbytes' fused `gemm_4bit`, `gemv_4bit`) is a matrix product;
- *dequantize*: changing weights or activations from or to a quantized format, with all that bitsandbytes does around a
  product (scales, outlier columns);
- *other*: normalization, GELU, residuals, copies; and the one kernel of all blocks of a single image (`blocks_at_once`),
  which cannot be told apart.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch

from petalite.errors import PetaliteError
from petalite.measure.latency import Call, warm_up

Kind = Literal["attention", "matmul", "dequantize", "other"]
Totals = defaultdict[tuple[str, Kind], tuple[float, int]]
KINDS: tuple[Kind, ...] = ("attention", "matmul", "dequantize", "other")
#: The first pattern that a name matches decides, so that a fused attention kernel built on CUTLASS is attention.
_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (
        "attention",
        re.compile(r"attention|attn|fmha|sdpa|flash|softmax|aten::(baddbmm|bmm)\b|^_(whole|streamed)\b", re.I),
    ),
    (
        "dequantize",
        re.compile(
            r"dequant|quantize_|kQuantize|VectorQuant|wise_quant|double_quant"
            r"|MatMul[48]bit|bitsandbytes::int8_(mixed_)?scaled_mm",
            re.I,
        ),
    ),
    (
        "matmul",
        re.compile(
            r"gemm|gemv|xmma|nvjet|cutlass|splitKreduce|fprop|convolve|triton_tem_|linear_matmul|^_product\b"
            r"|::\w*((?<!bi)linear|conv(?!ert)|matmul)|aten::(\w*mm|_addmm_activation|(add)?mv|dot)\b",
            re.I,
        ),
    ),
)
#: Which implementation of attention a name proves; the fused ones come first, since softmax may occur elsewhere too.
_IMPLEMENTATIONS = (
    # the fused engine's own (engine/kernels/attention.py); beside it another may run for a last block's few queries
    ("petalite", re.compile(r"^(_(whole|streamed)|blocks_at_once)\b")),
    ("openvino", re.compile(r"^openvino attention$")),
    ("cudnn", re.compile(r"cudnn\w*_sdpa|cudnn_attention", re.I)),
    ("fa3", re.compile(r"FlashAttnFwdSm90")),
    ("fa2", re.compile(r"flash_fwd|flash_attn|flash_attention", re.I)),
    ("efficient", re.compile(r"fmha_cutlass|efficient_attention|PyTorchMemEffAttention", re.I)),
    ("math", re.compile(r"attention_math|softmax", re.I)),
)
#: What the nodes of the CPU engine's graph do. Codes are made inside the nodes before a product, which are `other`.
_NODES: dict[str, Kind] = {
    "FullyConnected": "matmul",
    "FullyConnectedQuantizedLegacy": "matmul",
    "MatMul": "attention",
    "Softmax": "attention",
    "FakeQuantize": "dequantize",
}
_TOP = 12
_NAME_LENGTH = 160


def kind_of(name: str) -> Kind | None:
    """What a kernel or operator does, by its name alone; None when the name does not tell."""
    return next((kind for kind, pattern in _PATTERNS if pattern.search(name)), None)


def implementation_of(name: str) -> str | None:
    """Which attention the name proves: petalite, openvino, cudnn, fa3, fa2, efficient, math; None for any other name."""
    return next((ran for ran, pattern in _IMPLEMENTATIONS if pattern.search(name)), None)


def attention_ran(names: Iterable[str]) -> str | None:
    """The attention that ran, derived from the names seen alone; None when none of them tells."""
    seen = {implementation_of(name) for name in names}
    return next((ran for ran, _ in _IMPLEMENTATIONS if ran in seen), None)


def profile(forward: Call, wait: Call, device: torch.device, *, forwards: int = 5) -> dict[str, Any]:
    """Profile `forwards` passes: the contract's `kernels` block, all values per pass, the parts adding up to the total.

    Besides: `top` (the longest `name`, `ms`, `calls`, `kind`), `device`, `attention_ran` and `attention_kernel`.
    `wait` blocks until the device is done. Raises PetaliteError where the GPU's kernels cannot be seen.
    """
    warm_up(forward, wait, passes=2, seconds=0.0)
    if device.type == "cuda":
        _record(forward, wait, device, 1)  # the first profile pays for setting up CUPTI
    totals, names = summarize(_record(forward, wait, device, forwards), device.type)
    if device.type == "cuda" and not names:
        raise PetaliteError("the profiler saw no kernel on the GPU; its counters may be closed to this user (CUPTI)")
    return _block(totals, names, device.type, forwards)


def profile_nodes(nodes: Iterable[tuple[str, str, float]], forwards: int = 5) -> dict[str, Any]:
    """The same block as `profile` gives, of (name, type, milliseconds a pass) as the CPU engine counts its nodes."""
    totals: Totals = defaultdict(lambda: (0.0, 0))
    for name, node_type, milliseconds in nodes:
        kind = "attention" if name.startswith("attention/") else _NODES.get(node_type, "other")
        label = "attention" if kind == "attention" else node_type
        _add(totals, f"openvino {label}", kind, 1e3 * milliseconds * forwards, forwards)
    return _block(totals, {name for name, _ in totals}, "cpu", forwards)


def summarize(events: Iterable[Any], device_type: str) -> tuple[Totals, set[str]]:
    """Microseconds and calls by (name, kind), and every name seen, from the profiler's `events()`."""
    events = list(events)
    on_cpu = [event for event in events if event.device_type.name == "CPU"]
    roots = [event for event in on_cpu if event.cpu_parent is None]
    visits = [visit for root in roots for visit in _visit(root, None)]
    totals: Totals = defaultdict(lambda: (0.0, 0))
    if device_type != "cuda":
        for event, scope in visits:
            _add(totals, event.name, scope or "other", event.self_cpu_time_total)
        return totals, {event.name for event in on_cpu}

    # A kernel that an operator launched inherits that operator's kind; one replayed from a CUDA graph has its name only.
    left: Counter[str] = Counter()
    microseconds: Counter[str] = Counter()
    for event in events:
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False):
            left[event.name] += 1
            microseconds[event.name] += event.time_range.elapsed_us()
    names = set(left)
    for event, scope in visits:
        for kernel in event.kernels:
            if left[kernel.name] > 0:
                left[kernel.name] -= 1
                microseconds[kernel.name] -= kernel.duration
                kind = scope if scope == "attention" else kind_of(kernel.name) or scope
                _add(totals, kernel.name, kind or "other", kernel.duration)
    for name, calls in left.items():
        if calls > 0:
            _add(totals, name, kind_of(name) or "other", microseconds[name], calls)
    return totals, names


def _record(forward: Call, wait: Call, device: torch.device, forwards: int) -> Any:
    from petalite.measure.profiler import profiler_on

    wait()
    with profiler_on(device) as profiler:
        for _ in range(forwards):
            forward()
        wait()
    return profiler.events()


def _visit(event: Any, scope: Kind | None) -> Iterator[tuple[Any, Kind | None]]:
    """`event` and all beneath it, each with its kind: attention stays attention, else the nearest name that tells."""
    if scope != "attention":
        own = kind_of(event.name)
        # the product of two activations, as attention written out has it, is a matmul that ends in a bmm
        if event.name == "aten::matmul" and any(child.name == "aten::bmm" for child in event.cpu_children):
            own = "attention"
        scope = own or scope
    yield event, scope
    for child in event.cpu_children:
        yield from _visit(child, scope)


def _add(totals: Totals, name: str, kind: Kind, microseconds: float, calls: int = 1) -> None:
    before = totals[name, kind]
    totals[name, kind] = (before[0] + microseconds, before[1] + calls)


def _block(totals: Totals, names: set[str], device_type: str, forwards: int) -> dict[str, Any]:
    ms = {key: microseconds / 1e3 / forwards for key, (microseconds, _) in totals.items()}
    parts = {kind: sum((value for (_, its), value in ms.items() if its == kind), 0.0) for kind in KINDS}
    ran = attention_ran(names)
    proofs = {name: value for (name, _), value in ms.items() if ran and implementation_of(name) == ran}
    longest = sorted(ms, key=lambda key: ms[key], reverse=True)[:_TOP]
    return {
        "total_ms": sum(parts.values()),
        **{f"{kind}_ms": parts[kind] for kind in KINDS},
        "top": [
            {
                "name": _short(name),
                "ms": ms[name, kind],
                "calls": round(totals[name, kind][1] / forwards, 1),
                "kind": kind,
            }
            for name, kind in longest
        ],
        "device": device_type,
        "forwards": forwards,
        "attention_ran": ran,
        "attention_kernel": _short(max(proofs, key=lambda name: proofs[name])) if proofs else None,
    }


def _short(name: str) -> str:
    """Template arguments can fill a page; the beginning of the name identifies the kernel."""
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"
