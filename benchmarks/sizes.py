"""How small a model becomes in each format: bytes of the whole checkpoint folder, by shape (random weights).

python benchmarks/sizes.py vit_large_patch16_224 --formats nf4,int4,int4-sym,int4-g128 --edges none,int8-channel
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from result_files import write_rows

from petalite.checkpoint import read_checkpoint
from petalite.quantization import quantize
from petalite.speed import random_checkpoints


def main() -> None:
    """Build every checkpoint, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a timm name")
    parser.add_argument("--formats", default="fp16,int8-channel,nf4,int4,int4-sym,int4-g128,int3,int3-g128-sym,int2")
    parser.add_argument("--edges", default="none,int8-channel", help="formats of the embeddings and the head")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        parent = read_checkpoint(random_checkpoints(options.model, ["fp32"], folder)["fp32"])
        for edges in options.edges.split(","):
            for name in options.formats.split(","):
                chosen = None if edges == "none" else edges
                built = quantize(parent, name, Path(folder) / f"{name}-{edges}", edges=chosen)
                ratio = round(parent.disk_bytes / built.disk_bytes, 3)
                rows.append(
                    {
                        "model": options.model,
                        "classes": len(parent.classes),
                        "format": name,
                        "edges": edges,
                        "disk_bytes": built.disk_bytes,
                        "ratio": ratio,
                    }
                )
                print(*rows[-1].values(), sep="\t", flush=True)
    path = options.out / f"sizes_{options.model}.csv"
    write_rows(path, rows)
    print(path)


if __name__ == "__main__":
    main()
