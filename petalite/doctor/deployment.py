"""Whether a checkpoint can be deployed on this machine: the list that one goes through before traffic comes.

    for check in deployment(path, verify(path)): check["name"], check["ok"], check["text"]

Each check is made by doing it: hashes are compared, the checkpoint is loaded as `petalite serve` loads it, and an image is
classified. A check that a failed one makes impossible is not made, and says so.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.data.preprocess import Preprocess
from petalite.device import capability_of
from petalite.engine import Classifier, load
from petalite.errors import PetaliteError
from petalite.formats import FORMATS
from petalite.verification import VerifyReport


def deployment(path: Path, found: VerifyReport) -> list[dict[str, Any]]:
    """Rows of `name`, `ok` (None: could not be made) and `text`, a line each. found: what verifying the folder gave.

    Never raises for what the folder holds.
    """
    checks = [_verified(found)]
    if not found.ok:
        names = ("quantization", "preprocessing", "attention", "gpu", "answers")
        return [*checks, *(_row(name, None, "not checked: the checkpoint is damaged") for name in names)]
    checkpoint = read_checkpoint(path)
    checks += [_quantization(checkpoint), _preprocessing(checkpoint)]
    try:
        classifier = load(path)
    except PetaliteError as error:
        failed = _row("answers", False, f"it cannot be loaded here: {error}")
        return [
            *checks,
            *(_row(name, None, "not checked: it cannot be loaded") for name in ("attention", "gpu")),
            failed,
        ]
    return [*checks, _attention(classifier), _gpu(classifier), _answers(classifier)]


def _verified(found: VerifyReport) -> dict[str, Any]:
    errors = [finding.text for finding in found.findings if finding.level == "error"]
    notes = [finding.text for finding in found.findings if finding.level == "note"]
    what = f"{', '.join(found.checked)} as they were written"
    return _row("checkpoint", found.ok, "; ".join(errors or [what, *notes]))


def _quantization(checkpoint: Checkpoint) -> dict[str, Any]:
    """Whether what is stored is what the plan says, and can be multiplied here."""
    stored = sorted(set(checkpoint.plan.layers.values()))
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    missing = [reason for name in stored if (reason := FORMATS[name].missing(device))]
    kept = f", {', '.join(checkpoint.plan.kept)} kept" if checkpoint.plan.kept else ""
    text = f"{checkpoint.plan.format} as the plan says: {', '.join(stored)}{kept}"
    return _row("quantization", not missing, "; ".join(missing) or text)


def _preprocessing(checkpoint: Checkpoint) -> dict[str, Any]:
    """Whether images will be prepared as in training: `config.json` carries it, and its hash shows that it is unchanged."""
    preprocess = Preprocess.from_config(checkpoint.config)
    size = "x".join(map(str, preprocess.size))
    text = f"{size}, {preprocess.interpolation}, crop {preprocess.crop_pct:g} {preprocess.crop_mode}, mean {preprocess.mean[0]:g}"
    hashed = (checkpoint.path / "plan.json").exists()
    return _row(
        "preprocessing", True, f"{text}: {'as in training' if hashed else 'no hash shows that it is as in training'}"
    )


def _attention(classifier: Classifier) -> dict[str, Any]:
    return _row("attention", True, f"{classifier.info.attention}, engine {classifier.info.engine}")


def _gpu(classifier: Classifier) -> dict[str, Any]:
    capability = capability_of(classifier.device)
    info = classifier.info
    if capability is None:
        return _row("gpu", True, f"runs on the CPU in {info.compute}: {info.why}")
    name = torch.cuda.get_device_name(classifier.device)
    return _row(
        "gpu", True, f"{name}, compute capability {capability[0]}.{capability[1]}, runs in {info.compute}: {info.why}"
    )


def _answers(classifier: Classifier) -> dict[str, Any]:
    """Whether it classifies, with finite answers, and how long one image takes after the first."""
    pixels = torch.full((1, 3, *classifier.info.image_size), 128, dtype=torch.uint8)
    try:
        classifier.logits(pixels)
        started = time.perf_counter()
        logits = classifier.logits(pixels)
    except RuntimeError as error:
        return _row("answers", False, f"it failed: {str(error).splitlines()[0][:200]}")
    seconds = time.perf_counter() - started
    if not torch.isfinite(logits).all():
        return _row("answers", False, "it answers with NaN or infinity; train or quantize it again")
    return _row("answers", True, f"an image takes {1000 * seconds:.1f} ms, {classifier.info.classes} classes")


def _row(name: str, ok: bool | None, text: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "text": text}
