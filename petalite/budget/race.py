"""Is the chosen plan really faster? It and the usual ways run in turns, each in a process of its own.

race(parent, Path("runs/search/checkpoint"), "latency", Path("runs/search"), "cpu")
# {"variants": {"chosen": 14.1, "int8": 33.0, "fp32": 22.8}, "speedup": 2.34, "speedup_ci95": [2.29, 2.41], "faster": True}
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petalite.checkpoint import Checkpoint
from petalite.console import say
from petalite.measure.bench import Variant, benchmark
from petalite.quantization import quantize

_BATCH = {"latency": 1, "throughput": 32}
_RESAMPLES = 2000


def race(parent: Checkpoint, chosen: Path, objective: str, out: Path, device: str) -> dict[str, Any]:
    """Medians in ms of the chosen plan, of LLM.int8 everywhere and of the parent, and the ratio of the first two.

    `faster` says whether the 95 % bootstrap interval of that ratio lies above 1.
    """
    rival = quantize(parent, "int8", out / "work" / "int8")
    batch = _BATCH[objective]
    variants = [Variant("chosen", chosen), Variant("int8", rival.path), Variant("parent", parent.path)]
    rows = benchmark(
        variants,
        batch_sizes=(batch,),
        throughput_batches=(batch,),
        seconds=3.0,
        rounds=10,
        device=device,
        profile=False,
    )
    shutil.rmtree(out / "work", ignore_errors=True)
    samples = {row["name"]: row["raw"]["latency_ms"][str(batch)] for row in rows if row["status"] == "ok"}
    found: dict[str, Any] = {
        "batch_size": batch,
        "p50_ms": {name: float(np.median(times)) for name, times in samples.items()},
        "failed": {row["name"]: row["reason"] for row in rows if row["status"] != "ok"},
        "speedup": None,
        "speedup_ci95": None,
        "faster": False,
    }
    if "chosen" in samples and "int8" in samples:
        ratio, low, high = ratio_of_medians(samples["int8"], samples["chosen"])
        found |= {"speedup": ratio, "speedup_ci95": [low, high], "faster": low > 1}
        verdict = "faster than" if low > 1 else "not measurably faster than"
        say(f"the chosen plan is {verdict} int8 everywhere: {ratio:.2f}x [{low:.2f}, {high:.2f}] at batch {batch}")
    return found


def ratio_of_medians(slow: Sequence[float], quick: Sequence[float]) -> tuple[float, float, float]:
    """median(slow) / median(quick) and its 95 % bootstrap interval (Efron, 1979)."""
    random = np.random.default_rng(0)
    first, second = np.asarray(slow), np.asarray(quick)
    drawn = [
        np.median(random.choice(first, len(first))) / np.median(random.choice(second, len(second)))
        for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.median(first) / np.median(second)), float(low), float(high)
