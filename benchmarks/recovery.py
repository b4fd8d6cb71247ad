"""How much accuracy recovery brings back, by learning rate and share of the teacher: a table on one line a setting.

    python benchmarks/recovery.py runs/flowers/checkpoints/int2 DATA --teacher runs/flowers/checkpoints/fp32 \\
        --methods qat,qlora --rates 2e-4,5e-4,2e-3 --shares 0,0.9,1 --epochs 4

Images are decoded once and kept, so the settings differ in nothing but what is named; augmentation is a mirror image
and a shift. Top-1 and the loss are those of the validation images after the last epoch, in float32, rounded as stored.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.data import Preprocess, load_batches, open_data
from petalite.device import resolve_device
from petalite.recipe import TrainRecipe
from petalite.training import distillation
from petalite.training.recovery import QuantizedStudent

BATCH = 32


def main() -> None:
    """Read the arguments, train every setting, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--methods", default="qat")
    parser.add_argument("--rates", default="2e-4,5e-4,1e-3,2e-3")
    parser.add_argument("--shares", default="0.9")
    parser.add_argument("--temperatures", default="1")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = resolve_device(options.device)
    start, teacher = read_checkpoint(options.checkpoint), read_checkpoint(options.teacher)
    images = open_data(options.data)
    preprocess = Preprocess.from_config(start.config)
    splits: dict[str, tuple[Tensor, Tensor]] = {}
    for split in ("train", "valid"):
        samples = images.splits[split]
        batches = load_batches([sample.path for sample in samples], preprocess, 128)
        pixels = torch.cat([batch.pixels for batch in batches])
        splits[split] = pixels.to(device), torch.tensor([sample.target for sample in samples], device=device)
    print(f"{'method':6} {'lr':>8} {'share':>5} {'T':>3} {'top-1 %':>8} {'loss':>7} {'seconds':>8}")
    names = options.methods.split(",")
    given = (
        [float(part) for part in text.split(",")] for text in (options.rates, options.shares, options.temperatures)
    )
    print(
        f"{'start':6} {'':>18} {_line(QuantizedStudent(start, TrainRecipe(method='qat'), device), preprocess, splits)}"
    )
    for method, rate, share, temperature in itertools.product(names, *given):
        distillation.SHARE, distillation.TEMPERATURE = share, temperature
        began = time.monotonic()
        student = _trained(start, teacher, method, rate, options.epochs, preprocess, splits["train"], device)
        line = _line(student, preprocess, splits)
        print(f"{method:6} {rate:8g} {share:5g} {temperature:3g} {line} {time.monotonic() - began:8.1f}", flush=True)


def _trained(
    start: Checkpoint,
    teacher: Checkpoint,
    method: str,
    rate: float,
    epochs: int,
    preprocess: Preprocess,
    split: tuple[Tensor, Tensor],
    device: torch.device,
) -> QuantizedStudent:
    torch.manual_seed(0)
    student = QuantizedStudent(start, TrainRecipe(method=method), device)
    tutor = distillation.Teacher(teacher, start, device)
    optimizer = torch.optim.AdamW(student.groups(), lr=rate)
    pixels, targets = split
    steps = epochs * math.ceil(len(targets) / BATCH)
    dtype = torch.bfloat16
    step = 0
    for _ in range(epochs):
        student.model.train()
        for chosen in torch.randperm(len(targets)).to(device).split(BATCH):
            factor = min(1.0, (step + 1) / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = rate * factor * group["rate"]
            some = pixels[chosen]
            some = some.flip(-1) if torch.rand(()) < 0.5 else some
            some = some.roll(tuple(torch.randint(-12, 13, (2,)).tolist()), (-2, -1))
            with torch.autocast(device.type, dtype):
                logits = student.model(preprocess.normalize(some)).float()
            loss = F.cross_entropy(logits, targets[chosen], label_smoothing=0.1, reduction="sum")
            if distillation.SHARE:
                loss = tutor.loss(some, logits, loss, dtype)
            optimizer.zero_grad(set_to_none=True)
            (loss / len(chosen)).backward()
            torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
            optimizer.step()
            student.settle()
            step += 1
    return student


@torch.no_grad()
def _line(student: QuantizedStudent, preprocess: Preprocess, splits: dict[str, tuple[Tensor, Tensor]]) -> str:
    student.model.eval()
    pixels, targets = splits["valid"]
    logits = torch.cat([student.model(preprocess.normalize(some)) for some in pixels.split(128)])
    top1 = float((logits.argmax(-1) == targets).float().mean())
    return f"{100 * top1:8.2f} {float(F.cross_entropy(logits, targets)):7.4f}"


if __name__ == "__main__":
    main()
