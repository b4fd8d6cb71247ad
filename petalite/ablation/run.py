"""The verb: every setting of every format on the same images, resumable, against the parent as it is.

    found = ablate("runs/flowers/checkpoints/fp32", "flowers102", formats=("nf4",), out="runs/ablation")
    found["formats"][0]["rows"][2]["gain"]     # what keeping blocks.0 gains, with interval and p

The parent is evaluated as `petalite evaluate --baseline` does it: in the precision of its own checkpoint, FP32 for most.
Kept blocks are what `quantize(keep=...)` would make of them: stored in 16 bits, multiplied in the compute precision of
the quantized variant. So a row says what a checkpoint with that plan loses, 16-bit arithmetic included; `unquantized`,
in which every block is kept, says how much of it that arithmetic is.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from petalite import __version__
from petalite.ablation.compare import Outcomes, compared, write_csv
from petalite.ablation.passes import Blocks, all_logits, load_blocks
from petalite.ablation.settings import ALL, Setting, from_scratch, settings_of
from petalite.ablation.words import sentence
from petalite.checkpoint import WEIGHTS, Checkpoint, read_checkpoint
from petalite.console import say, track
from petalite.data import ImageData, Sample, load_batches, open_data
from petalite.device import resolve_device
from petalite.engine import Classifier, load
from petalite.errors import Incomplete, PetaliteError
from petalite.evaluation import check_classes, logits_of
from petalite.files import atomic, prepare_out, sha256, write_json
from petalite.formats import get_format
from petalite.measure.environment import environment
from petalite.measure.statistics import wilson

SCHEMA = 1
#: What is done is written down at least this often.
SAVE_SECONDS = 60.0


def ablate(
    checkpoint: str | Path,
    data: str | Path | ImageData,
    formats: Sequence[str] = ("nf4", "int8"),
    *,
    split: str = "test",
    out: str | Path | None = None,
    reverse: bool = False,
    layers: Iterable[str] = (),
    device: str = "auto",
    attention: str = "auto",
    compute: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
    threads: int | None = None,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Quantize `checkpoint` whole, but for its first and last block, and but for each block; compare on a split of `data`.

    reverse: also quantize each block alone. layers: layers, blocks and globs of which each layer is also kept alone.
    out: where ablation_results.csv, ablation.json and, in `ablation/`, the answers for each image are written; `resume`
    goes on with what is there as far as it was made of the same checkpoint, images and options.
    Returns the contents of ablation.json. Raises PetaliteError for formats that are unknown or plain, a checkpoint that
    is already quantized, classes that do not fit, and Incomplete when images cannot be read.
    """
    chosen = check_formats(formats)
    if batch_size < 1:
        raise PetaliteError(f"a batch of {batch_size} images is not possible; give at least 1")
    parent = read_checkpoint(checkpoint)
    if parent.packed:
        raise PetaliteError(f"{parent.path} is already quantized; ablate its plain parent")
    settings = settings_of(parent.outline.layers, layers, reverse)
    for name in chosen:
        get_format(name).require(resolve_device(device))
    images = data if isinstance(data, ImageData) else open_data(data, seed)
    samples = images.split(split)
    if not samples:
        raise PetaliteError(f"{images.name} has no {split} images")
    base = load(parent, device, threads=threads, engine="module")
    check_classes(base, images)
    folder = None if out is None else prepare_out(Path(out), resume=resume, force=force)
    fingerprint = _fingerprint(images, samples) if folder else None
    origin = _digest(fingerprint, *(sha256(parent.path / name) for name in (WEIGHTS, "config.json"))) if folder else ""

    parent_logits = _parent_logits(base, samples, batch_size, workers, folder, origin)
    base_info = base.info.as_dict()
    del base
    targets = np.array([sample.target for sample in samples], dtype=np.int32)
    answers = parent_logits.argmax(dim=1).numpy().astype(np.int32)
    found = []
    for name in chosen:
        work = _Work(parent, name, settings, samples, parent_logits, batch_size, workers)
        outcomes, info = work.run(folder, origin, device, attention, compute, threads)
        found.append(_described(name, info, settings, outcomes, compared(settings, outcomes, answers, targets)))
    right = answers == targets
    document = {
        "schema": SCHEMA,
        "checkpoint": str(checkpoint),
        "architecture": base_info["architecture"],
        "blocks": len(settings[0].blocks),
        "data": {"name": images.name, "split": split, "images": len(samples), "classes": len(images.classes),
                 "fingerprint": fingerprint},
        "environment": environment(),
        "batch_size": batch_size,
        "parent": {"top1": float(right.mean()), "top1_ci95": list(wilson(int(right.sum()), len(right))),
                   **{key: base_info[key] for key in ("format", "attention", "compute", "device")}},
        "formats": found,
    }  # fmt: skip
    document["sentence"] = sentence(document)
    if folder is not None:
        write_csv(folder / "ablation_results.csv", found)
        write_json(folder / "ablation.json", document)
    return document


@dataclass(frozen=True)
class _Work:
    """One format's settings on all images."""

    parent: Checkpoint
    format: str
    settings: Sequence[Setting]
    samples: Sequence[Sample]
    parent_logits: Tensor
    batch_size: int
    workers: int | None

    def run(
        self, folder: Path | None, origin: str, device: str, attention: str, compute: str, threads: int | None
    ) -> tuple[Outcomes, dict[str, Any]]:
        """What every setting answers for every image, and what ran."""
        classifier, blocks = load_blocks(self.parent, self.format, device, attention, compute, threads)
        info = classifier.info.as_dict()
        path = folder / "ablation" / f"{self.format}.npz" if folder else None
        inputs = _digest(
            origin, self.format, [(setting.kept, setting.layers) for setting in self.settings],
            info["attention"], info["compute"], info["device"], self.batch_size, torch.__version__, __version__,
        )  # fmt: skip
        outcomes = self._recorded(path, inputs)
        if outcomes.done:
            say(f"{self.format}: {outcomes.done} of {len(self.samples)} images were done before")
        saved = time.monotonic()
        for _ in self._batches(classifier, blocks, outcomes):
            if path and time.monotonic() - saved > SAVE_SECONDS:
                _save(path, inputs, outcomes)
                saved = time.monotonic()
        if path:
            _save(path, inputs, outcomes)
        return outcomes, info

    def _batches(self, classifier: Classifier, blocks: Blocks, outcomes: Outcomes) -> Iterator[None]:
        """Run batch after batch from where `outcomes` ends, and note there what came out."""
        paths = [sample.path for sample in self.samples[outcomes.done :]]
        batches = load_batches(paths, classifier.preprocess, self.batch_size, self.workers)
        total = math.ceil(len(paths) / self.batch_size)
        for batch in track(batches, f"ablate {self.format}", total=total):
            if batch.errors:
                raise Incomplete(f"{batch.errors[0][1]}; `petalite data check` lists unreadable images")
            rows = slice(outcomes.done, outcomes.done + len(batch.indices))
            started, calls = time.monotonic(), blocks.calls
            self._answer(all_logits(classifier, blocks, self.settings, batch.pixels), outcomes, rows)
            outcomes.seconds += time.monotonic() - started
            outcomes.block_passes += (blocks.calls - calls) * len(batch.indices) / len(self.samples)
            outcomes.done = rows.stop
            yield

    def _answer(self, answers: Iterable[tuple[Setting, Tensor]], outcomes: Outcomes, rows: slice) -> None:
        places = {setting.kept: place for place, setting in enumerate(self.settings)}
        expected = self.parent_logits[rows].double().log_softmax(dim=1)
        for setting, logits in answers:
            found = logits.float().cpu()
            if not torch.isfinite(found).all():
                raise PetaliteError(
                    f"{self.format} with {setting.kept} kept gives logits that are NaN or infinite; use --compute bf16 or fp32"
                )
            divergence = (expected.exp() * (expected - found.double().log_softmax(dim=1))).sum(dim=1).clamp(min=0)
            outcomes.predictions[places[setting.kept], rows] = found.argmax(dim=1).numpy()
            outcomes.divergences[places[setting.kept], rows] = divergence.numpy()

    def _recorded(self, path: Path | None, inputs: str) -> Outcomes:
        shape = (len(self.settings), len(self.samples))
        if path and (stored := _stored(path, inputs)):
            return Outcomes(
                stored["predictions"], stored["divergences"], int(stored["done"]), float(stored["seconds"]),
                float(stored["block_passes"]),
            )  # fmt: skip
        return Outcomes(np.zeros(shape, np.int32), np.zeros(shape, np.float64))


def check_formats(names: Sequence[str]) -> list[str]:
    """The formats of these names. Raises PetaliteError for unknown ones, plain ones, and none at all."""
    chosen = [get_format(name) for name in dict.fromkeys([names] if isinstance(names, str) else names)]
    if not chosen:
        raise PetaliteError("formats is empty; name at least one, e.g. nf4")
    for format in chosen:
        if format.plain:
            raise PetaliteError(
                f"{format.name} keeps every layer as it is, so there is nothing to ablate; name nf4, say: "
                "`petalite ls formats` lists them"
            )
    return [format.name for format in chosen]


def _parent_logits(
    base: Classifier, samples: Sequence[Sample], batch_size: int, workers: int | None, folder: Path | None, origin: str
) -> Tensor:
    """Logits (images, classes) of the parent, from `folder` where they are there already."""
    path = folder / "ablation" / "parent.npz" if folder else None
    info = base.info
    inputs = _digest(origin, info.attention, info.compute, info.device, batch_size, torch.__version__, __version__)
    if path and (stored := _stored(path, inputs)):
        return torch.from_numpy(stored["logits"])
    logits = logits_of(base, samples, batch_size, workers)
    if not torch.isfinite(logits).all():
        raise PetaliteError(f"{base.info.checkpoint} gives logits that are NaN or infinite; check its weights")
    if path:
        _write_arrays(path, inputs=inputs, logits=logits.numpy())
    return logits


def _described(
    format: str,
    info: Mapping[str, Any],
    settings: Sequence[Setting],
    outcomes: Outcomes,
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    done, needed = round(outcomes.block_passes), from_scratch(settings)
    return {
        "format": format,
        "kept_in": get_format(format).rest,
        **{key: info[key] for key in ("attention", "compute", "device")},
        "cost": {"block_passes": done, "from_scratch": needed, "share": done / needed, "seconds": outcomes.seconds},
        "rows": [row for row in rows if row["kept"] != ALL],
        "unquantized": next(row for row in rows if row["kept"] == ALL),
    }


def _fingerprint(images: ImageData, samples: Sequence[Sample]) -> str:
    """SHA-256 over the classes and each image's path, class and content."""
    lines = [
        (sample.path.relative_to(images.root).as_posix(), sample.target, sha256(sample.path)) for sample in samples
    ]
    return _digest(images.folders, images.classes, lines)


def _save(path: Path, inputs: str, outcomes: Outcomes) -> None:
    _write_arrays(path, inputs=inputs, **vars(outcomes))


def _write_arrays(path: Path, **arrays: Any) -> None:
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _stored(path: Path, inputs: str) -> dict[str, Any] | None:
    """The arrays in `path` if they were made of the same `inputs`."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return arrays if str(arrays.get("inputs")) == inputs else None


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
