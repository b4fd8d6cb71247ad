"""The README's table and picture, from the rows that the CSVs in results/ have; only the reference's figures are typed in.

    python benchmarks/picture.py            # README.md between its marks, and docs/pictures/waterfall.svg
    python benchmarks/picture.py --check    # exit code 1 where they are not what the CSVs say

Of several runs of one measurement the last counts. Speeds are of random weights (they do not depend on them); points of
top-1 lost are of the tuned ViT-Ti/16 on the 819 test photos of Flowers-102, through the same engine and precision.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "pictures" / "waterfall.svg"
BEGIN, END = "<!-- made by benchmarks/picture.py -->", "<!-- end of what benchmarks/picture.py made -->"
Row = dict[str, str]

#: Candidates of gpu_peers.py that the table shows, where they were measured; all others stay in the CSV.
GPU = (
    "transformers-fp32",
    "transformers-fp16",
    "transformers-bf16-compiled",
    "bitsandbytes-nf4-sdpa",
    "bitsandbytes-int8-sdpa",
    "torchao-fp8",
    "torchao-int8",
    "lean-bf16-graph",
    "petalite-bf16",
    "petalite-fp8",
    "petalite-fp8-from-int4",
    "petalite-fp8-from-nf4",
)
#: Candidates of cpu_peers.py, and what they are.
CPU = {
    "torch-fp32": "PyTorch, FP32",
    "torch-bf16": "PyTorch, BF16",
    "openvino-nncf-int8+bf16": "OpenVINO + NNCF, INT8",
    "petalite-int8": "**Petalite**, int8",
}
MODELS = {"vit_large_patch16_224": "ViT-L/16", "vit_base_patch16_224": "ViT-B/16", "vit_tiny_patch16_224": "ViT-Ti/16"}
#: Variants of reference_variants.py that stand beside the reference study's own.
REFERENCE = {
    "fp32": "FP32",
    "nf4-fa2": "4 bits (NF4), FlashAttention-2",
    "nf4-sdpa": "4 bits (NF4), SDPA",
    "int8-sdpa": "8 bits (LLM.int8), SDPA",
}
#: What the study published (one image): ms, MB, points of top-1 lost. There is no file of its rows.
PUBLISHED = {
    "fp32": ("58.9", "1,157", "0"),
    "nf4-fa2": ("35.0", "~290", "2.0"),
    "nf4-sdpa": ("42.1", "~290", "2.0"),
    "int8-sdpa": ("60.8", "~580", "0.5"),
}


def rows_of(results: Path, pattern: str) -> list[Row]:
    """The rows of all CSVs of that name that were measured (`status` ok)."""
    found: list[Row] = []
    for path in sorted(results.glob(pattern)):
        with path.open(newline="", encoding="utf-8") as file:
            found += [row for row in csv.DictReader(file) if row.get("status", "ok") == "ok"]
    return found


def table(results: Path) -> str:
    """The Markdown table: a section for each model and machine."""
    lines = [
        "| | one image, ms | many, images/s | times the best other BF16 | stored, MB | points lost |",
        "|---|---|---|---|---|---|",
        *_gpu(results),
        *_cpu(results),
        *_reference(results),
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, *cells: str) -> str:
    return f"| {name} | {' | '.join(cell or '–' for cell in cells)} |"


def _head(text: str) -> str:
    return f"| *{text}* | | | | | |"


def _gpu(results: Path) -> Iterator[str]:
    found = rows_of(results, "gpu-peers_*.csv")
    ours = {(row["run"], row["batch_size"]) for row in found if row["candidate"].startswith("petalite")}
    found.sort(key=lambda row: (row["run"], row["batch_size"]) in ours)  # beside Petalite, rather than in another run
    latest = {(row["model"], row["candidate"], int(row["batch_size"])): row for row in found}
    for model, name in MODELS.items():
        sizes = sorted({size for other, _, size in latest if other == model})
        if not sizes:
            continue
        hardware = next(row["hardware"] for (other, *_), row in latest.items() if other == model)
        yield _head(f"{name}, {hardware}, batches of {sizes[-1]}")
        for candidate in GPU:
            many, one = latest.get((model, candidate, sizes[-1])), latest.get((model, candidate, 1))
            row = many or one
            if row is None:
                continue
            own = candidate.startswith("petalite")
            yield _line(
                f"**Petalite**, {_ours(candidate, row['stored'])}" if own else row["about"],
                _number(one and one["p50_ms"], 2),
                _number(many and many["images_per_s"], 0),
                _times(found, many) if many else "",
                _number(row["stored_bytes"], 0, 1e6),
                _lost_on_gpu(results, row["stored"], candidate) if own else "",
            )


def _times(found: list[Row], row: Row) -> str:
    """Images/s of a row over those of the best compiled BF16 of the same run, as whoever divides the two finds it."""
    same = ("run", "model", "batch_size")
    beside = (one for one in found if all(one[name] == row[name] for name in same))
    best = next((one for one in beside if one["candidate"] == row["best_bf16"]), None)
    return f"{float(row['images_per_s']) / float(best['images_per_s']):.2f}" if best else ""


def _ours(candidate: str, stored: str) -> str:
    """`petalite-fp8-from-int4` -> int4 at rest, fp8 in flight."""
    compute = candidate.split("-")[1]
    return compute if stored == "fp32" else f"{stored} at rest, {compute} in flight"


def _lost_on_gpu(results: Path, stored: str, candidate: str) -> str:
    """Points lost by the tuned ViT-Ti stored so, in the precision that the candidate computes in."""
    compute = "bf16" if candidate.endswith("bf16") else "fp8"
    for row in rows_of(results, "gpu-accuracy_*.csv"):
        same = (row["stored"], row["compute"], row["engine"]) == (stored, compute, "fused")
        if same and row["splits"] == "test" and not int(row["merged_tokens"]):
            return _number(row["drop_points"], 2)
    return ""


def _cpu(results: Path) -> Iterator[str]:
    paths = [path for path in sorted(results.glob("cpu-peers_*.csv")) if "-flowers102_" not in path.name]
    lost = {
        row["candidate"]: float(row["top1"]) for row in rows_of(results, "cpu-peers_*-flowers102_*.csv") if row["top1"]
    }
    for model, name in MODELS.items():
        for path in paths:
            found = [row for row in rows_of(results, path.name) if row["model"] == model]
            if not found:
                continue
            last = max(int(row["batch"]) for row in found)
            rows = {(row["candidate"], int(row["batch"])): row for row in found}
            yield _head(f"{name}, {_machine(path)}, batches of {last}")
            others = [rows[key] for key in (("torch-bf16", last), ("openvino-bf16", last)) if key in rows]
            best = max((float(row["images_per_s"]) for row in others), default=None)
            for candidate, about in CPU.items():
                many, one = rows.get((candidate, last)), rows.get((candidate, 1))
                if many is None:
                    continue
                yield _line(
                    about,
                    _number(one and one["median_ms"], 1),
                    _number(many["images_per_s"], 0),
                    _number(best and str(float(many["images_per_s"]) / best), 2),
                    _number(many["file_bytes"], 0, 1e6),
                    _number(str(100 * (lost["petalite-fp32"] - lost[candidate])) if candidate in lost else "", 2),
                )


def _machine(path: Path) -> str:
    """`cpu-peers_MODEL_Intel(R)-Xeon(R)-Processor-2-cores_torch-….csv` -> Intel Xeon, 2 cores."""
    words = path.stem.split("_torch")[0].rpartition("_")[2].replace("(R)", "").replace("-Processor-", ", ")
    return words.replace("-", " ")


def _reference(results: Path) -> Iterator[str]:
    latest = {(row["variant"], row["batch_size"]): row for row in rows_of(results, "reference-variants_*.csv")}
    if latest:
        hardware = next(iter(latest.values()))["hardware"]
        yield _head(f"ViT-L/16 as the reference study ran it (bitsandbytes), {hardware}, batches of 256")
    for variant, about in REFERENCE.items():
        one, many = latest.get((variant, "1")), latest.get((variant, "256"))
        if one and many:
            yield _line(
                about,
                _number(one["latency_p50_ms"], 1),
                _number(many["images_per_s"], 0),
                "",
                _number(one["disk_bytes"], 0, 1e6),
                "",
            )
    yield _head("the reference study's own figures: ViT-L/16 tuned on Flowers-102, one GPU that it does not name")
    for variant, (ms, size, lost) in PUBLISHED.items():
        yield _line(REFERENCE[variant], ms, "", "", size, lost)


def _number(text: str | None, digits: int, unit: float = 1) -> str:
    """A CSV's number as people read it; nothing where it was not measured."""
    if not text:
        return ""
    value = round(float(text) / unit, digits)
    return f"{value + 0:,.{digits}f}"


def picture(results: Path) -> str:
    """The waterfall as an SVG that is legible on light and on dark pages: a bar a step, its speed, what it costs."""
    rows = rows_of(results, "gpu-waterfall_*.csv")
    largest = max(int(row["batch_size"]) for row in rows)
    steps = {row["step"]: row for row in rows if int(row["batch_size"]) == largest}
    ones = {row["step"]: row for row in rows if int(row["batch_size"]) == 1}
    first = next(iter(steps.values()))
    most = max(float(row["images_per_s"]) for row in steps.values())
    model = MODELS.get(first["weights"].split()[0], first["weights"])
    top, step_height, left, width = 66, 40, 286, 320
    height = top + step_height * len(steps) + 28
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" width="760" height="{height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="14" fill="#20262e">',
        f"<title>{escape(model)} on one {escape(first['hardware'])}: images per second, step by step</title>",
        f'<rect width="760" height="{height}" rx="10" fill="#ffffff" stroke="#c9ced6"/>',
        f'<text x="20" y="30" font-size="17" font-weight="600">{escape(model)} on one {escape(first["hardware"])}, '
        f"batches of {largest}: images a second</text>",
        '<text x="20" y="50" fill="#5b6470" font-size="12">Random weights, torch '
        f"{escape(first['torch'])}; each step in its last run. In brackets: one image alone, median.</text>",
    ]
    for index, (step, row) in enumerate(steps.items()):
        y = top + step_height * index
        rate = float(row["images_per_s"])
        length = width * rate / most
        alone = f" ({float(ones[step]['p50_ms']):.2f} ms)" if step in ones else ""
        color = "#4a525c" if index == 0 else "#1f6fc4" if "bf16" in step else "#d1550f"
        parts += [
            f'<text x="{left - 10}" y="{y + 21}" text-anchor="end" font-size="13">{escape(row["about"])}</text>',
            f'<rect x="{left}" y="{y + 4}" width="{length:.1f}" height="26" rx="3" fill="{color}"/>',
            f'<text x="{left + length + 8:.1f}" y="{y + 21}">{rate:,.0f}'
            f'<tspan fill="#5b6470">{escape(alone)}</tspan></text>',
        ]
    parts.append(
        f'<text x="20" y="{height - 10}" fill="#5b6470" font-size="12">benchmarks/gpu_waterfall.py; every column in '
        "benchmarks/results/</text>"
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def with_table(readme: str, made: str) -> str:
    """The README with `made` between the marks."""
    before, _, rest = readme.partition(BEGIN + "\n")
    return f"{before}{BEGIN}\n{made}{END}{rest.partition(END)[2]}"


def main(arguments: list[str] | None = None) -> int:
    """Write both, or say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where something would change")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    text = README.read_text(encoding="utf-8")
    wanted = {README: with_table(text, table(options.results)), PICTURE: picture(options.results)}
    stale = [path for path, new in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != new]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is not what the CSVs say' if options.check else 'written'}")
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
