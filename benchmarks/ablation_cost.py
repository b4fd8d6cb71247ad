"""What sharing blocks between the settings of an ablation saves: block passes counted, seconds measured.

    python benchmarks/ablation_cost.py runs/flowers/checkpoints/fp32 --formats nf4,int8 --images 16 --rounds 3
    python benchmarks/ablation_cost.py vit_tiny_patch16_224            # random weights

Both ways run the same modules on the same random pixels; the logits have to be equal, bit by bit. The rounds alternate
between the two, and the medians are compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from petalite import models
from petalite.ablation.passes import Blocks, all_logits, load_blocks, logits_from_scratch
from petalite.ablation.settings import Setting, from_scratch, passes, settings_of
from petalite.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from petalite.engine import Classifier
from petalite.plan import Plan


def random_checkpoint(name: str, folder: Path) -> Checkpoint:
    """timm's model `name` with random weights and ten classes."""
    config, tensors = models.create(name, pretrained=False, classes=[f"class {index}" for index in range(10)])
    plan = Plan("fp32", dict.fromkeys(models.layers(models.build(config)), "fp32"), "fp32")
    return write_checkpoint(folder, config, tensors, plan)


def shared(
    classifier: Classifier, blocks: Blocks, settings: list[Setting], pixels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Logits of every setting, each block run once for all that agree up to it."""
    return {setting.kept: logits.cpu() for setting, logits in all_logits(classifier, blocks, settings, pixels)}


def alone(
    classifier: Classifier, blocks: Blocks, settings: list[Setting], pixels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Logits of every setting, each from the pixels on."""
    return {setting.kept: logits_from_scratch(classifier, blocks, setting, pixels).cpu() for setting in settings}


def main() -> int:
    """Count, time, compare; 0 when all logits are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a plain checkpoint's folder, or a timm name for random weights")
    parser.add_argument("--formats", default="nf4,int8")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reverse", action="store_true")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        known = Path(options.model).is_dir()
        parent = read_checkpoint(options.model) if known else random_checkpoint(options.model, Path(folder) / "fp32")
        settings = settings_of(parent.outline.layers, reverse=options.reverse)
        for format in options.formats.split(","):
            classifier, blocks = load_blocks(parent, format, options.device)
            pixels = torch.randint(0, 256, (options.images, 3, *classifier.info.image_size), dtype=torch.uint8)
            seconds: dict[str, list[float]] = {"shared": [], "alone": []}
            answers = {}
            shared(classifier, blocks, settings[:1], pixels)  # what a first pass sets up is not timed
            for _ in range(options.rounds):
                for name, work in (("shared", shared), ("alone", alone)):
                    started = time.perf_counter()
                    answers[name] = work(classifier, blocks, settings, pixels)
                    seconds[name].append(time.perf_counter() - started)
            same = all(torch.equal(logits, answers["alone"][kept]) for kept, logits in answers["shared"].items())
            equal = equal and same
            counted, needed = passes(settings), from_scratch(settings)
            quick, slow = median(seconds["shared"]), median(seconds["alone"])
            row = {
                "model": options.model, "format": format, "compute": classifier.info.compute,
                "device": classifier.info.device, "images": options.images, "settings": len(settings),
                "block_passes": counted, "from_scratch": needed, "share_of_passes": round(counted / needed, 4),
                "seconds_shared": round(quick, 3), "seconds_from_scratch": round(slow, 3),
                "share_of_time": round(quick / slow, 4), "logits_equal": same,
            }  # fmt: skip
            print(json.dumps(row))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
