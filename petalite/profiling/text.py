"""A profile as text for a terminal: where the time goes, whether that is all of it, and what the device could do.

print(profile_text(dissect(variant)))
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from petalite.profiling.roofline import group_of
from petalite.profiling.steps import WORDS

_KERNELS = 8


def profile_text(found: dict[str, Any]) -> str:
    """A screen of it; the whole is in the JSON."""
    return "\n\n".join(
        "\n".join(part) for part in (_head(found), _kinds(found), _layers(found), _kernels(found), _rest(found))
    )


def _head(found: dict[str, Any]) -> list[str]:
    info, check = found["info"], found["anatomy"]["check"]
    lines = [
        f"{info['architecture']}, {info['format']}, batch {found['batch_size']}: {check['total_ms']:.3f} ms a pass "
        f"({info['engine']} engine, {info['compute']}, {info['device']}); "
        f"attention: {found['attention_ran'] or 'not recognized'}"
    ]
    verdict = "the parts add up" if check["adds_up"] else "THE PARTS DO NOT ADD UP"
    lines.append(
        f"{verdict}: parts and gaps {check['accounted_ms']:.3f} ms, {check['difference']:+.1%} of that "
        f"({check['tolerance']:.0%} allowed); under the profiler a pass took {check['profiled_ms']:.3f} ms"
    )
    if not check["adds_up"]:
        lines.append("the machine may have been busy, or the profiler in the way: run it again on a quiet machine")
    return [*lines, *found["anatomy"]["notes"]]


def _kinds(found: dict[str, Any]) -> list[str]:
    return [
        f"{WORDS[entry['kind']]:22} {entry['ms']:9.3f} ms {entry['share']:6.1%}  {'█' * round(40 * entry['share'])}"
        for entry in found["anatomy"]["kinds"]
    ]


def _layers(found: dict[str, Any]) -> list[str]:
    """Layers of the same name of all blocks together, with what they achieve where their work is known."""
    anatomy, roof = found["anatomy"], found["roofline"]
    if anatomy["layers"] is None:
        return [f"layers: they cannot be told, since {anatomy['layers_untold']}"]
    totals: dict[str, float] = defaultdict(float)
    for entry in anatomy["layers"]:
        totals[group_of(entry["layer"])] += entry["ms"]
    rates = {group["group"]: group for group in roof.get("groups", ())}
    lines = [f"{'layer, all blocks':22} {'ms':>9} {'TFLOP/s':>9} {'GB/s':>7}  of what its ceiling allows"]
    longest = sorted(totals, key=lambda name: totals[name], reverse=True)
    for name in [name for name in longest if totals[name] > 0.002 * anatomy["check"]["total_ms"]]:
        line = f"{name:22} {totals[name]:9.3f}"
        if rate := rates.get(name):
            line += f" {rate['tflops']:9.3f} {rate['gb_s']:7.1f}  {rate['share_of_roof']:.0%} ({rate['bound']})"
        lines.append(line)
    return lines


def _kernels(found: dict[str, Any]) -> list[str]:
    top = found["anatomy"]["top"][:_KERNELS]
    return [f"{one['ms']:9.3f} ms {one['calls']:7g}x  {one['kind']:13} {one['name'][:90]}" for one in top]


def _rest(found: dict[str, Any]) -> list[str]:
    roof, energy, memory = found["roofline"], found["energy"], found["memory"]
    if "reason" in roof:
        lines = [f"ceilings: not measured: {roof['reason']}"]
    else:
        ceilings = roof["ceilings"]
        lines = [
            f"ceilings measured here: {ceilings['tflops']:.3g} TFLOP/s in {ceilings['precision']} "
            f"({ceilings['tflops_of']}), {ceilings['copy_gb_s']:.3g} GB/s of copying"
        ]
        if products := roof["products"]:
            lines.append(
                f"products alone: {products['tflops']:.3g} TFLOP/s, {products['share_of_products']:.0%} of that; "
                f"the whole pass {roof['total']['tflops']:.3g}, {roof['total']['share_of_products']:.0%}"
            )
    peak = max((held for _, held in memory["points"]), default=0)
    where = "on the device" if memory["kind"] == "device" else "resident"
    lines.append(f"memory: up to {peak / 1e6:.0f} MB {where} while loading and in the first passes")
    if "reason" in energy:
        lines.append(f"energy: not measured: {energy['reason']}")
    else:
        lines.append(f"energy: {energy['joules_per_image']:.3g} J an image at {energy['watts']:.0f} W")
    return lines
