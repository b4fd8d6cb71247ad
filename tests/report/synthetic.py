"""A study that never ran: a folder as `petalite run` leaves it, with plausible numbers and photos drawn on the spot.

write_study(tmp_path / "study")                                   # five variants, 102 classes, everything there
write_study(out, variants=("fp32",), blocks=("accuracy",))        # one variant, only its accuracy
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

CLASSES = (
    "fire lily", "canterbury bells", "bolero deep blue", "pink primrose", "mexican aster", "prince of wales feathers",
    "moon orchid", "globe-flower", "grape hyacinth", "corn poppy", "toad lily", "siam tulip", "red ginger",
    "spring crocus", "alpine sea holly", "garden phlox", "giant white arum lily", "colt's foot", "love in the mist",
    "hard-leaved pocket orchid",
    *(f"flower {number}" for number in range(21, 103)),
)  # fmt: skip
IMAGES = 120
BLOCKS = ("accuracy", "latency", "throughput", "memory", "kernels")

#: format, attention, what ran, compute, MB on disk, median ms, photos lost, peak MB, kernel ms by kind
_NUMBERS: dict[str, tuple[tuple[str, str, str, str], float, float, int, int, tuple[float, float, float, float]]] = {
    "fp32": (("fp32", "math", "math", "fp32"), 22.1, 23.0, 0, 512, (3.1, 14.9, 0.0, 4.6)),
    "nf4-fa2": (("nf4", "fa2", "fa2", "bf16"), 3.62, 31.5, 2, 431, (1.9, 9.2, 12.8, 5.1)),
    "int8-fa2": (("int8", "fa2", "fa2", "bf16"), 6.21, 41.0, 0, 447, (1.9, 21.0, 7.7, 9.2)),
    "nf4-sdpa": (("nf4", "sdpa", "fa2", "bf16"), 3.62, 31.9, 2, 433, (1.9, 9.3, 12.9, 5.0)),
    "int8-sdpa": (("int8", "sdpa", "fa2", "bf16"), 6.21, 40.4, 1, 445, (1.9, 20.8, 7.8, 9.0)),
}
PLAN: dict[str, dict[str, Any]] = {
    name: dict(zip(("kind", "mb", "ms", "wrong", "peak", "k"), numbers, strict=True))
    for name, numbers in _NUMBERS.items()
}


def write_study(
    out: Path,
    *,
    variants: Sequence[str] = tuple(PLAN),
    failed: dict[str, tuple[str, str]] | None = None,
    blocks: Sequence[str] = BLOCKS,
    classes: Sequence[str] = CLASSES,
    budget: float | None = 1.0,
    extra_wrong: int = 0,
    train: bool = True,
    run: bool = True,
    samples: bool = True,
    photos: bool = True,
    names: dict[str, str] | None = None,
) -> Path:
    """Write a study's folder. `failed` maps a variant to (status, reason); `names` renames variants."""
    rng = random.Random(0)
    names = names or {}
    failed = failed or {}
    (out / "predictions").mkdir(parents=True)
    (out / "measure").mkdir()
    paths = _photos(out / "photos", rng, photos)
    targets = [classes[number % len(classes)] for number in range(IMAGES)]
    base = _answers(targets, classes, wrong=3, seed=1)
    rows = []
    for key in variants:
        name, plan = names.get(key, key), PLAN[key]
        row: dict[str, Any] = {"name": name, "checkpoint": f"checkpoints/{plan['kind'][0]}", "plan": None}
        row |= dict(zip(("format", "attention", "attention_ran", "compute"), plan["kind"], strict=True))
        if key in failed:
            status, reason = failed[key]
            rows.append({**row, "attention_ran": None, "status": status, "reason": reason, **dict.fromkeys(BLOCKS)})
            continue
        wrong = plan["wrong"] + (extra_wrong if key != "fp32" else 0)
        answers = base if key == "fp32" else _answers(targets, classes, wrong, seed=len(key), start=base)
        measured = _measured(plan, answers, base, targets, rng)
        rows.append(
            {**row, "status": "ok", "reason": None, **{k: measured[k] if k in blocks else None for k in BLOCKS}}
        )
        if "latency" in blocks:
            rows[-1]["latency_by_batch"] = [measured["latency"]]
        if "throughput" in blocks:
            rows[-1]["throughput_by_batch"] = measured["sweep"]
        if "accuracy" in blocks:
            _write_csv(out / "predictions" / f"{name}.csv", _prediction_rows(paths, targets, answers, classes, rng))
        if samples and "latency" in blocks:
            raw = {"latency_ms": {"1": measured["raw"]}, "rounds": 5}
            (out / "measure" / f"{name}.json").write_text(json.dumps(raw))
    results = {
        "schema": 1,
        "environment": ENVIRONMENT,
        "data": {"name": "flowers102", "split": "test", "images": IMAGES, "classes": len(classes), "fingerprint": "9f2c" * 16},
        "baseline": names.get("fp32", "fp32"),
        "budget_points": budget,
        "variants": rows,
    }  # fmt: skip
    (out / "results.json").write_text(json.dumps(results))
    (out / "results.csv").write_text("name\n")
    if run:
        (out / "run.json").write_text(json.dumps(_run(out, classes)))
    if train:
        (out / "train").mkdir()
        _write_csv(out / "train" / "metrics.csv", [_epoch(number) for number in range(1, 7)])
    return out


ENVIRONMENT = {
    "petalite": "0.1.0",
    "python": "3.11.7",
    "versions": {"torch": "2.15.0+cpu", "timm": "1.0.31", "bitsandbytes": "0.50.0"},
    "platform": "Linux-6.1-x86_64",
    "cpu": {"model": "AMD EPYC 9B45", "cores": 2, "flags": ["avx2", "avx512_bf16", "avx512_vnni"]},
    "gpus": [],
}


def _run(out: Path, classes: Sequence[str]) -> dict[str, Any]:
    notes = ["splits as given: train 6,552, valid 818, test 819"]
    return {
        "schema": 1,
        "command": ["petalite", "run", "--data", "photos of flowers", "--model", "vit_tiny_patch16_224", "--out", "x"],
        "recipe": {"data": "photos of flowers", "train": {"method": "lora", "epochs": 6}},
        "seed": 0,
        "environment": ENVIRONMENT,
        "data": {
            "name": "flowers102", "root": str(out / "photos"), "fingerprint": "9f2c" * 16,
            "images": {"train": 6552, "valid": 818, "test": IMAGES}, "classes": len(classes), "notes": notes,
            "copies_across_splits": [["valid/31/image_08067.jpg", "train/31/image_08077.jpg"]],
        },
        "steps": {
            "train": {"status": "done", "seconds": 1984.2, "inputs": "ab"},
            "measure": {"status": "done", "seconds": 412.0, "inputs": "cd"},
            "report": {"status": "running", "inputs": "ef"},
        },
    }  # fmt: skip


def _photos(folder: Path, rng: random.Random, draw: bool) -> list[str]:
    """Small flowers on a lawn: petals around a heart, each of its own colour."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(IMAGES):
        path = folder / f"image_{number:05d}.png"
        paths.append(str(path))
        if not draw:
            continue
        width, height = rng.choice([(96, 72), (72, 96), (80, 80)])
        image = Image.new("RGB", (width, height), (rng.randint(20, 70), rng.randint(80, 130), rng.randint(20, 60)))
        pen = ImageDraw.Draw(image)
        color = tuple(rng.randint(90, 255) for _ in range(3))
        petals, reach, size = rng.randint(5, 9), rng.randint(14, 22), rng.randint(9, 13)
        for petal in range(petals):
            angle = 2 * math.pi * petal / petals
            x, y = width / 2 + reach * math.cos(angle), height / 2 + reach * math.sin(angle)
            pen.ellipse((x - size, y - size, x + size, y + size), fill=color, outline=(60, 30, 60))
        pen.ellipse((width / 2 - 9, height / 2 - 9, width / 2 + 9, height / 2 + 9), fill=(250, 210, 60))
        image.save(path)
    return paths


def _answers(
    targets: Sequence[str], classes: Sequence[str], wrong: int, seed: int, start: Sequence[str] | None = None
) -> list[str]:
    """`start` (or the targets) with `wrong` answers changed, and one of its mistakes put right."""
    rng = random.Random(seed)
    answers = list(start or targets)
    right = [place for place, answer in enumerate(answers) if answer == targets[place]]
    for place in rng.sample(right, min(wrong, len(right))):
        answers[place] = rng.choice([name for name in classes if name != targets[place]] or list(classes))
    mistakes = [place for place, answer in enumerate(answers) if start and start[place] != targets[place]]
    if wrong and mistakes:
        answers[mistakes[0]] = targets[mistakes[0]]
    return answers


def _measured(plan: dict[str, Any], answers: list[str], base: list[str], targets: list[str], rng: random.Random) -> Any:
    n = len(targets)
    right = [a == t for a, t in zip(answers, targets, strict=True)]
    before = [a == t for a, t in zip(base, targets, strict=True)]
    top1 = sum(right) / n
    half = 1.96 * math.sqrt(max(top1 * (1 - top1), 0.004) / n)
    moved = [b - a for a, b in zip(right, before, strict=True)]
    drop = 100 * sum(moved) / n
    width = 100 * 1.96 * math.sqrt(max(sum(x * x for x in moved), 0.2)) / n
    raw = [plan["ms"] * (1 + abs(rng.gauss(0, 0.05))) * (1.4 if rng.random() < 0.03 else 1) for _ in range(140)]
    ordered = sorted(raw)
    latency = {
        "batch_size": 1, "mean_ms": sum(raw) / len(raw), "p50_ms": ordered[70], "p95_ms": ordered[133],
        "p99_ms": ordered[138], "samples": len(raw),
    }  # fmt: skip
    rate = 1000 / plan["ms"]
    sweep = [
        {"batch_size": batch, "images_per_s": rate * (1 + 0.3 * math.log2(batch)) * (0.97 if batch == 64 else 1)}
        for batch in (1, 4, 16, 64)
    ]
    attention, matmul, dequantize, other = plan["k"]
    return {
        "accuracy": {
            "top1": top1, "top1_ci95": [top1 - half, min(top1 + half, 1)], "top5": min(1.0, top1 + 0.01),
            "f1_weighted": top1 - 0.002, "f1_macro": top1 - 0.004,
            "agreement": sum(a == b for a, b in zip(answers, base, strict=True)) / n,
            "drop_points": drop, "drop_ci95": [drop - width, drop + width], "mcnemar_p": 1.0 if abs(drop) < 1 else 0.031,
        },
        "latency": latency,
        "raw": raw,
        "throughput": max(sweep, key=lambda item: item["images_per_s"]),
        "sweep": sweep,
        "memory": {"disk_bytes": int(plan["mb"] * 1e6), "peak_bytes": int(plan["peak"] * 1e6), "kind": "rss"},
        "kernels": {
            "total_ms": sum(plan["k"]), "attention_ms": attention, "matmul_ms": matmul, "dequantize_ms": dequantize,
            "other_ms": other, "top": [{"name": "mkldnn::gemm", "ms": matmul, "calls": 48, "kind": "matmul"}], "device": "cpu",
        },
    }  # fmt: skip


def _prediction_rows(
    paths: list[str], targets: list[str], answers: list[str], classes: Sequence[str], rng: random.Random
) -> list[dict[str, Any]]:
    rows = []
    for path, target, answer in zip(paths, targets, answers, strict=True):
        left = 1 - (score := rng.uniform(0.35, 0.99) if answer == target else rng.uniform(0.25, 0.6))
        others = [
            name for name in dict.fromkeys([target, *rng.sample(list(classes), min(6, len(classes)))]) if name != answer
        ]
        row: dict[str, Any] = {"path": path, "target": target, "prediction_1": answer, "score_1": round(score, 6)}
        for k in range(2, 6):
            left *= 0.5
            row[f"prediction_{k}"] = others[k - 2] if k - 2 < len(others) else ""
            row[f"score_{k}"] = round(left, 6) if k - 2 < len(others) else ""
        rows.append({**row, "error": ""})
    return rows


def _epoch(number: int) -> dict[str, Any]:
    top1 = (0.963, 0.981, 0.989, 0.992, 0.9951, 0.994)[number - 1]
    return {
        "epoch": number, "step": 205 * number, "lr": 0.002 / number, "train_loss": round(2.6 / number + 0.9, 4),
        "valid_loss": round(1.9 / number + 0.85, 4), "valid_top1": top1, "seconds": 331.0,
    }  # fmt: skip


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
