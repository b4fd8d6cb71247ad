"""The training loop. Everything in it is a function of the seed and the step, so that a run which was killed and
resumed ends with the same weights as one that never was.

    start = start_checkpoint("vit_tiny_patch16_224", "full", classes=images.classes)
    checkpoint = train_from(start, images, Path("runs/one"), TrainRecipe(method="full"))
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petalite.checkpoint import Checkpoint, read_checkpoint, tensor_hash, write_checkpoint
from petalite.console import say, track
from petalite.data import Augment, ImageData, Preprocess, check_data, load_batches, train_batches
from petalite.device import resolve_device
from petalite.errors import PetaliteError
from petalite.formats.plain import DTYPES
from petalite.recipe import TrainRecipe
from petalite.training import distributed, methods, state
from petalite.training.distillation import Teacher
from petalite.training.recovery import input_ranges
from petalite.training.student import student_of


def train_from(
    start: Checkpoint,
    images: ImageData,
    out: Path,
    recipe: TrainRecipe,
    *,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
) -> Checkpoint:
    """`petalite.training.train`, from a start that is there already (see `start_checkpoint`)."""
    if recipe.method == "none":
        return _write(out, start, images, {"training": "none"})
    chosen = resolve_device(device)
    world = distributed.join(chosen.type)
    if world.size > 1 and chosen.type == "cuda":
        chosen = torch.device("cuda", world.local_rank)
    loop = _Loop(images, start, out, recipe, seed, chosen, world, workers)
    loop.run()
    tensors, plan = loop.student.finished(loop.best)
    if plan.activations:
        spans = input_ranges(loop.model, images, loop.preprocess, plan.activations, workers)
        plan = replace(plan, activations=spans)
    trained = Checkpoint(out / "checkpoints" / plan.format, start.config, plan, tensors)
    if world.first:
        trained = _write(out, trained, images, loop.notes())
    distributed.leave(world)
    return trained


class _Loop:
    def __init__(
        self,
        images: ImageData,
        start: Checkpoint,
        out: Path,
        recipe: TrainRecipe,
        seed: int,
        device: torch.device,
        world: distributed.World,
        workers: int | None,
    ) -> None:
        self.start = start
        self.images, self.out, self.recipe, self.seed = images, out, recipe, seed
        self.device, self.world, self.workers = device, world, workers
        self.preprocess = Preprocess.from_config(start.config)
        self.augment = Augment(self.preprocess, recipe.augment, recipe.flip)
        torch.manual_seed(seed)
        self.student = student_of(start, recipe, device)
        self.model = self.student.model
        self.teacher = Teacher(read_checkpoint(recipe.teacher), start, device) if recipe.teacher else None
        self.trained = methods.trainable(self.model)
        self.dtype = _precision(recipe.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.peak_lr = recipe.lr or methods.LEARNING_RATES[recipe.method]
        self.optimizer = torch.optim.AdamW(self.student.groups(), lr=self.peak_lr)
        self.whole_batch = recipe.batch_size * recipe.accumulate * world.size
        self.steps_an_epoch = math.ceil(len(images.splits["train"]) / self.whole_batch)
        self.steps = self.steps_an_epoch * recipe.epochs
        self.class_weights = _class_weights(images).to(device) if recipe.class_weights else None
        self.inputs = _inputs(images, start, self.teacher, recipe, seed, world)
        self.progress = state.Progress(micro_batch=recipe.batch_size)
        self.best: dict[str, Tensor] = {}
        self.saved = time.monotonic()

    def run(self) -> None:
        """Train from the resume point to the end; `best` holds the best epoch's parameters."""
        count = sum(parameter.numel() for parameter in self.trained.values())
        whole = sum(parameter.numel() for parameter in self.model.parameters())
        self._say(
            f"train: {self.recipe.method}, {count:,} of {whole:,} parameters, {self.recipe.epochs} epochs of "
            f"{self.steps_an_epoch} steps, batch {self.whole_batch}, {str(self.dtype).removeprefix('torch.')} on {self.device}"
        )
        self._resume()
        if self.student.start_counts and not self.best:
            self._validate_start()
        while self.progress.epoch < self.recipe.epochs:
            self._epoch()

    def notes(self) -> dict[str, Any]:
        """What the model card says of the training."""
        recipe, progress = self.recipe, self.progress
        notes: dict[str, Any] = {"training": f"{recipe.method}, {recipe.epochs} epochs"}
        if self.student.start_counts:
            notes["recovered from"] = f"{self.start.path.name}, validation top-1 {progress.start_top1:.4f}"
        if self.teacher:
            notes["teacher"] = f"{self.teacher.checkpoint.path.name} ({self.teacher.checkpoint.plan.format})"
        notes["validation top-1 (best epoch)"] = (
            f"{progress.best_top1:.4f} of {len(self.images.splits['valid'])} images"
        )
        return notes

    def _validate_start(self) -> None:
        valid_loss, valid_top1 = self._validate()
        self.progress.start_top1 = valid_top1
        self._keep_if_best(valid_loss, valid_top1)
        self._say(f"start: valid loss {valid_loss:.3f}, valid top-1 {100 * valid_top1:.2f} %")

    def _epoch(self) -> None:
        progress, recipe = self.progress, self.recipe
        self.model.train()
        started = time.monotonic() - progress.seconds
        label = f"epoch {progress.epoch + 1}/{recipe.epochs}"
        for pixels, targets, count in track(self._batches(), label, total=self.steps_an_epoch - progress.step):
            progress.loss_sum += self._step(pixels, targets, count)
            progress.step += 1
            progress.seconds = time.monotonic() - started
            if progress.step < self.steps_an_epoch and time.monotonic() - self.saved > 60 * recipe.save_minutes:
                self._save()
        valid_loss, valid_top1 = self._validate()
        progress.seconds = time.monotonic() - started
        row = {
            "epoch": progress.epoch + 1,
            "step": (progress.epoch + 1) * self.steps_an_epoch,
            "lr": self._lr(progress.epoch * self.steps_an_epoch + progress.step - 1),
            "train_loss": progress.loss_sum / self.steps_an_epoch,
            "valid_loss": valid_loss,
            "valid_top1": valid_top1,
            "seconds": round(progress.seconds, 1),
        }
        progress.rows.append(row)
        self._keep_if_best(valid_loss, valid_top1)
        progress.epoch, progress.step, progress.loss_sum, progress.seconds = progress.epoch + 1, 0, 0.0, 0.0
        self._say(
            f"{label}: loss {row['train_loss']:.3f}, valid loss {valid_loss:.3f}, "
            f"valid top-1 {100 * valid_top1:.2f} %, {row['seconds']:.0f} s"
        )
        self._save()

    def _keep_if_best(self, valid_loss: float, valid_top1: float) -> None:
        progress = self.progress
        if (valid_top1, -valid_loss) > (progress.best_top1, -progress.best_loss):
            progress.best_top1, progress.best_loss = valid_top1, valid_loss
            self.best = {name: parameter.detach().cpu().clone() for name, parameter in self.trained.items()}

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """(pixels, targets, images in the whole batch) for the steps of this epoch that are left, this process's share."""
        samples, epoch = self.images.splits["train"], self.progress.epoch
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(samples), generator=generator).tolist()
        wholes = [order[start : start + self.whole_batch] for start in range(0, len(order), self.whole_batch)]
        wholes = wholes[self.progress.step :]
        mine = [index for whole in wholes for index in whole[self.world.rank :: self.world.size]]
        seeds = [((self.seed * 1_000_003 + epoch) * 1_000_003 + index) % 2**62 for index in mine]
        share = self.whole_batch // self.world.size
        batches = train_batches(samples, self.augment, mine, seeds, share, self.workers)
        for whole in wholes:
            if len(whole) <= self.world.rank:  # the last, short batch has no image for this process
                yield (
                    torch.empty(0, 3, *self.preprocess.size, dtype=torch.uint8),
                    torch.empty(0, dtype=torch.long),
                    len(whole),
                )
            else:
                yield *next(batches), len(whole)

    def _step(self, pixels: Tensor, targets: Tensor, count: int) -> float:
        """One optimizer step on this process's share of a whole batch of `count` images; the mean loss of the batch."""
        at = self.progress.epoch * self.steps_an_epoch + self.progress.step
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(at) * group["rate"]
        loss = self._accumulate(pixels, targets, count)
        distributed.sum_gradients(self.trained.values(), self.world)
        self.scaler.unscale_(self.optimizer)
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.trained.values(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.student.settle()
        loss = float(distributed.total(torch.tensor(loss, device=self.device), self.world))
        if not math.isfinite(loss):
            raise PetaliteError(
                f"training diverged at step {at + 1} (loss {loss}); lower --lr (it is {self.peak_lr:g})"
            )
        return loss

    def _accumulate(self, pixels: Tensor, targets: Tensor, count: int) -> float:
        """Gradients of the share in passes of `micro_batch` images; where memory runs out, smaller passes are tried."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return sum(
                    self._backward(some, their, count)
                    for some, their in zip(
                        pixels.split(self.progress.micro_batch), targets.split(self.progress.micro_batch), strict=True
                    )
                    if len(some)
                )
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
            # outside the handler, which would keep the failed pass's tensors alive
            if self.progress.micro_batch == 1:
                raise PetaliteError(
                    "out of memory with a single image; use --checkpointing, a smaller model or image size, or qlora"
                )
            self.progress.micro_batch = math.ceil(self.progress.micro_batch / 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            passes = math.ceil(self.whole_batch / self.world.size / self.progress.micro_batch)
            say(
                f"out of memory: batch size halved to {self.progress.micro_batch}, {passes} passes a step; the result is the same"
            )

    def _backward(self, pixels: Tensor, targets: Tensor, count: int) -> float:
        pixels, targets = (part.to(self.device, non_blocking=True) for part in (pixels, targets))
        logits = self._logits(pixels)
        loss = self._labels_loss(logits, targets, self.recipe.label_smoothing)
        if self.teacher:
            loss = self.teacher.loss(pixels, logits, loss, self.dtype)
        loss = loss / count
        self.scaler.scale(loss).backward()
        return float(loss.detach())

    def _logits(self, pixels: Tensor) -> Tensor:
        """(n, classes) for uint8 pixels (n, 3, H, W) on the device."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits: Tensor = self.model(self.preprocess.normalize(pixels))
        return logits.float()

    def _labels_loss(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Summed cross-entropy."""
        return F.cross_entropy(logits, targets, weight=self.class_weights, label_smoothing=smoothing, reduction="sum")

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        """Mean loss and top-1 on the validation split."""
        self.student.evaluate()
        samples = self.images.splits["valid"][self.world.rank :: self.world.size]
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, right, seen
        for batch in load_batches(
            [sample.path for sample in samples], self.preprocess, self.recipe.batch_size, self.workers
        ):
            if batch.errors:
                raise PetaliteError(f"{batch.errors[0][1]}; remove it from the validation images")
            targets = torch.tensor([samples[index].target for index in batch.indices.tolist()], device=self.device)
            logits = self._logits(batch.pixels.to(self.device, non_blocking=True))
            loss = self._labels_loss(logits, targets, 0.0)
            sums += torch.stack(
                [loss.double(), (logits.argmax(-1) == targets).sum().double(), sums.new_tensor(len(targets))]
            )
        loss_sum, right, seen = distributed.total(sums, self.world).tolist()
        return loss_sum / seen, right / seen

    def _lr(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero (Loshchilov and Hutter, 2017, arXiv:1608.03983)."""
        warm = max(1, round(self.recipe.warmup * self.steps))
        if step < warm:
            return self.peak_lr * (step + 1) / warm
        return self.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def _save(self) -> None:
        if self.world.first:
            folder = self.out / "train"
            state.save(
                folder / "checkpoints" / "last.pt",
                self.inputs, self.progress, self.trained, self.best, self.optimizer, self.scaler,
            )  # fmt: skip
            state.write_metrics(folder / "metrics.csv", self.progress.rows)
        self.saved = time.monotonic()

    def _resume(self) -> None:
        saved = state.read(self.out / "train" / "checkpoints" / "last.pt", self.inputs)
        if saved is None:
            return
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(saved["trained"][name])
        self.best = saved["best"]
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.progress = state.Progress(**saved["progress"])
        torch.set_rng_state(saved["random"])
        if saved["random_cuda"] and self.device.type == "cuda":
            torch.cuda.set_rng_state_all(saved["random_cuda"])
        self._say(f"train: resumed after {self.progress.epoch} epochs and {self.progress.step} steps")

    def _say(self, text: str) -> None:
        if self.world.first:
            say(text)


def _write(out: Path, trained: Checkpoint, images: ImageData, notes: Mapping[str, Any]) -> Checkpoint:
    config = {**trained.config, "class_folders": list(images.folders)}
    target = out / "checkpoints" / trained.plan.format
    return write_checkpoint(target, config, trained.tensors, trained.plan, {"data": images.name, **notes})


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        ampere = device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if ampere else torch.float16
    if name == "fp16" and device.type == "cpu":
        raise PetaliteError("training in fp16 needs a GPU; use --precision bf16 or fp32 on a CPU")
    return DTYPES[name]


def _class_weights(images: ImageData) -> Tensor:
    """Inverse class frequencies, scaled so that their mean over the training images is 1."""
    targets = torch.tensor([sample.target for sample in images.splits["train"]])
    counts = torch.bincount(targets, minlength=len(images.classes)).float()
    return len(targets) / (len(images.classes) * counts)


def _out_of_memory(error: Exception) -> bool:
    text = str(error)
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "can't allocate memory" in text
        or "out of memory" in text
    )


def _inputs(
    images: ImageData,
    start: Checkpoint,
    teacher: Teacher | None,
    recipe: TrainRecipe,
    seed: int,
    world: distributed.World,
) -> str:
    """A hash of all that decides the result, so that a resume point is never continued by another training."""
    described = {
        "data": check_data(images).fingerprint,
        "recipe": {name: value for name, value in vars(recipe).items() if name not in ("save_minutes", "teacher")},
        "config": start.config,
        "seed": seed,
        "world": world.size,
        "tensors": _hashes(start),
        "teacher": _hashes(teacher.checkpoint) if teacher else {},
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def _hashes(checkpoint: Checkpoint) -> dict[str, str]:
    return {name: tensor_hash(tensor) for name, tensor in checkpoint.tensors.items()}
