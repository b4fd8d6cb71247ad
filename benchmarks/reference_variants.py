"""The reference study's five variants, and fp16 and bf16, at a model's shape: latency, throughput, memory, kernels.

    python benchmarks/reference_variants.py --model vit_large_patch16_224 --batch-sizes 1,32,256

Weights are random: speed does not depend on them. Each variant runs in a process of its own, in interleaved rounds.
The CSV's name says hardware and versions; the JSON beside it has every raw sample and the kernels by name.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from result_files import result_path

from petalite.files import write_json
from petalite.measure.bench import Variant, benchmark
from petalite.measure.environment import environment
from petalite.measure.names import parse_variant
from petalite.measure.tables import write_benchmark_csv
from petalite.speed import random_checkpoints

VARIANTS = "fp32,nf4-fa2,int8-fa2,nf4-efficient,int8-efficient,nf4-sdpa,int8-sdpa,fp16,fp16-fa2,bf16,bf16-fa2"


def main() -> None:
    """Measure and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--variants", default=VARIANTS)
    parser.add_argument("--batch-sizes", default="1,32,256")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", default="module", help="module, as the reference ran them, or fused")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    batches = [int(size) for size in options.batch_sizes.split(",")]
    parsed = {name: parse_variant(name) for name in options.variants.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        formats = list(dict.fromkeys(format for format, *_ in parsed.values()))
        checkpoints = random_checkpoints(options.model, formats, folder)
        rows = benchmark(
            [
                Variant(name, checkpoints[format], attention, compute, options.engine)
                for name, (format, attention, compute, _) in parsed.items()
            ],
            batch_sizes=batches,
            throughput_batches=batches,
            seconds=options.seconds,
            device=options.device,
        )
    for row in rows:  # a temporary folder's name says nothing
        row["checkpoint"] = f"{options.model} (random weights), {row['format']}"
    machine = environment()
    path = result_path(options.out, f"reference-variants_{options.model}")
    write_benchmark_csv(rows, path, machine)
    write_json(path.with_suffix(".json"), {"environment": machine, "variants": rows})
    print(path)


if __name__ == "__main__":
    main()
