"""What was achieved against what the device can do: operations and bytes a second, as shares of measured ceilings.

    ceilings = measure_ceilings(checkpoint, "int8", batch=8, device=torch.device("cpu"), progress=nothing)
    roofline(account, work, ceilings)["groups"]     # [{"group": "mlp.fc1", "tflops": 1.9, "share_of_products": 0.61, …}]

The model: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import torch

from petalite.checkpoint import Checkpoint
from petalite.measure.ceilings import copied_bytes_per_s, product_flops, quickest_product
from petalite.measure.latency import Call
from petalite.profiling.steps import NO_LAYER
from petalite.profiling.work import Work, of_layer

#: Rows, inputs and outputs of a product that leaves a device nothing but to multiply.
_SQUARE = {"cuda": 8192, "cpu": 2048}
_BLOCK = re.compile(r"^blocks\.\d+\.?")


def measure_ceilings(
    checkpoint: Checkpoint, compute: str, batch: int, device: torch.device, progress: Call, seconds: float = 0.3
) -> dict[str, Any]:
    """JSON values: `products` (a large square, and each of the model's shapes), the largest of them, and `copy`.

    Raises RuntimeError where no product in `compute` runs here by itself.
    """
    model: Any = checkpoint.skeleton()
    rows = batch * (model.patch_embed.num_patches + model.num_prefix_tokens)
    size = _SQUARE[device.type]
    shapes = {"square": (size, size, size)}
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        try:
            layer: Any = model.blocks[0].get_submodule(name)
        except AttributeError:
            continue  # an attention or MLP of another kind
        shapes[name] = (rows, layer.in_features, layer.out_features)
    products: list[dict[str, Any]] = []
    for name, shape in shapes.items():
        way, took_s = quickest_product(compute, *shape, device, seconds)
        products.append(
            {"product": name, "shape": list(shape), "way": way, "tflops": product_flops(*shape) / took_s / 1e12}
        )
        progress()
    best = max(products, key=lambda one: float(one["tflops"]))
    return {
        "precision": compute,
        "products": products,
        "tflops": best["tflops"],
        "tflops_of": f"{best['way']}, {best['product']}",
        "copy_gb_s": copied_bytes_per_s(device, seconds) / 1e9,
    }


def roofline(account: dict[str, Any], known: dict[str, Work], ceilings: dict[str, Any]) -> dict[str, Any]:
    """`groups` of layers with their rates and shares, where layers are told; `products` (None where they are part
    of one kernel of all blocks) and `total` of the whole pass."""
    peak, moving = ceilings["tflops"], ceilings["copy_gb_s"]
    groups: dict[str, list[Any]] = defaultdict(lambda: [0.0, Work(0.0, 0.0)])
    for entry in account["layers"] or ():
        done = of_layer(known, entry["layer"]) if entry["layer"] else None
        if done is not None:
            group = groups[group_of(entry["layer"])]
            group[0] += entry["ms"]
            group[1] += done
    kinds = {entry["kind"]: entry["ms"] for entry in account["kinds"]}
    multiplied = sum((one for name, one in known.items() if _is_product(name)), Work(0.0, 0.0))
    apart = not kinds.get("blocks")  # in one kernel, what takes products how long cannot be told
    everything = sum(known.values(), Work(0.0, 0.0))
    return {
        "groups": [{"group": name, **_rates(ms, done, peak, moving)} for name, (ms, done) in groups.items() if ms > 0],
        "products": _rates(kinds["products"], multiplied, peak, moving) if kinds.get("products") and apart else None,
        "total": _rates(account["check"]["total_ms"], everything, peak, moving),
    }


def group_of(layer: str | None) -> str:
    """What a layer is called together with those of the other blocks: `mlp.fc1`; queries with keys and values."""
    if layer is None:
        return NO_LAYER
    name = _BLOCK.sub("", layer) or "residuals"
    return "attn.qkv" if name in ("attn.q", "attn.kv") else name


def _is_product(name: str) -> bool:
    return not name.endswith((".attn", ".norm1", ".norm2"))


def _rates(ms: float, done: Work, peak_tflops: float, copy_gb_s: float) -> dict[str, Any]:
    """intensity: operations a byte. bound: which of the two ceilings is the lower one at that intensity."""
    tflops, gb_s = done.flops / ms / 1e9, done.bytes / ms / 1e6
    intensity = done.flops / done.bytes
    reachable = min(peak_tflops, intensity * copy_gb_s / 1e3)
    return {
        "ms": ms,
        "tflops": tflops,
        "gb_s": gb_s,
        "intensity": intensity,
        "share_of_products": tflops / peak_tflops,
        "share_of_copy": gb_s / copy_gb_s,
        "share_of_roof": tflops / reachable,
        "bound": "products" if reachable == peak_tflops else "memory",
    }
