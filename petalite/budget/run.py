"""The search: estimate, solve, build, measure, repair, certify.

    result = search("runs/flowers/checkpoints/fp32", "flowers102", "runs/search", max_drop=0.5, objective="size")
    result["certificate"]["certified"], result["chosen"]["ratio"]

Estimates come from unlabelled training images; every plan that is tried is built and measured on the validation split;
the test split is looked at once, for the certificate. All plans tried stand in OUT/search.csv.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petalite.budget.certificate import CONFIDENCE, certify, fewest_images
from petalite.budget.estimates import estimate
from petalite.budget.problem import OBJECTIVES, Problem, Proposal
from petalite.budget.race import race
from petalite.budget.record import Try, read_estimates, save_estimates, write_record
from petalite.budget.sensitivity import context_damages, divergence
from petalite.calibration import calibrate, calibration_pixels, check_method
from petalite.calibration.images import FEWEST
from petalite.checkpoint import WEIGHTS, Checkpoint, read_checkpoint
from petalite.console import say, warn
from petalite.data import ImageData, Preprocess, open_data
from petalite.device import resolve_device
from petalite.engine import load
from petalite.errors import Incomplete, PetaliteError, did_you_mean
from petalite.evaluation import check_classes, logits_of
from petalite.files import prepare_out, sha256
from petalite.formats import get_format
from petalite.measure.accuracy import score
from petalite.measure.statistics import paired_bound
from petalite.quantization import apply_plan

#: The formats that are tried where none are named: for size, everything that is small; for speed, one of each kind.
FORMATS = {
    "size": ("int8-channel", "int4", "int4-g128-sym", "int3", "int3-g128-sym", "int2-g32", "int2"),
    "latency": ("fp32", "int8", "nf4", "int8-channel", "int4"),
    "throughput": ("fp32", "int8", "nf4", "int8-channel", "int4"),
}
#: Bounds on the damage, in nats, that bisection looks between; where one point of top-1 is usually lost; when to stop.
_LEAST, _USUAL, _CLOSE = 1e-4, 0.01, 0.05
#: One-sided confidence that a plan needs on the validation images. The best of several plans owes some of its figure to
#: chance: chosen by the drop itself, it loses about twice as much on the test images (docs/log.md).
PROBABLY = 0.8
IMAGES = 256
TRIES = 8


def search(
    checkpoint: str | Path,
    data: str | Path | ImageData,
    out: str | Path,
    *,
    max_drop: float = 0.5,
    objective: str = "size",
    formats: Sequence[str] = (),
    merge: bool = False,
    images: int = IMAGES,
    calibration: str = "gptq",
    tries: int = TRIES,
    confidence: float = CONFIDENCE,
    device: str = "auto",
    workers: int | None = None,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Find, build and certify the plan of least size or time that loses at most `max_drop` points of top-1.

    objective: `size` (bytes on disk), `latency` (batch 1) or `throughput` (batch 32) on this device. formats: those that
    layers may take. merge: also merge tokens (latency and throughput). images: unlabelled training images for the
    estimates and the calibration. calibration: as in `calibrate`. tries: plans that are built and measured.
    Writes the checkpoint to OUT/checkpoint, its plan to OUT/plan.json, every try to OUT/search.csv and OUT/search.json.
    Raises PetaliteError for input that cannot work (also where images are too few for any plan to be seen to keep the
    budget), and Incomplete when no plan keeps the budget on the validation images, or the chosen one does not on the
    test images.
    """
    _check(max_drop, objective, formats, merge, tries, confidence, images)
    check_method(calibration)
    parent = read_checkpoint(checkpoint)
    if parent.packed:
        raise PetaliteError(f"{checkpoint} is already quantized ({parent.plan.format}); start from its plain parent")
    samples = data if isinstance(data, ImageData) else open_data(data, seed)
    for split in ("valid", "test"):
        if not samples.splits[split]:
            raise PetaliteError(
                f"{samples.name} has no {split} images; a search chooses on valid and certifies on test"
            )
    _check_enough({split: len(found) for split, found in samples.splits.items()}, max_drop, confidence)
    chosen_device = resolve_device(device)
    for name in formats or FORMATS[objective]:
        get_format(name).require(chosen_device)
    folder = prepare_out(Path(out), resume=resume, force=force)
    pixels = calibration_pixels(samples, Preprocess.from_config(parent.config), images, seed, workers)
    hunt = _Search(parent, samples, pixels, folder, chosen_device, calibration, max_drop, workers, seed)
    names = tuple(formats) or FORMATS[objective]
    # bytes and divergences are the same on every device; times are not
    place = "any" if objective == "size" else str(chosen_device)
    origin = sha256(parent.path / WEIGHTS)
    inputs = [origin, names, objective, merge, images, seed, place]
    problem = read_estimates(folder, inputs)
    if problem is None:
        problem = estimate(parent, pixels, names, objective=objective, merge=merge, device=chosen_device)
        save_estimates(folder, inputs, problem)
    hunt.explore(problem, tries)
    hunt.repair(problem, max(2, tries // 2))
    return hunt.conclude(problem, confidence)


class _Search:
    def __init__(
        self,
        parent: Checkpoint,
        images: ImageData,
        pixels: Tensor,
        out: Path,
        device: torch.device,
        method: str,
        max_drop: float,
        workers: int | None,
        seed: int,
    ) -> None:
        self.parent, self.images, self.pixels, self.out, self.device = parent, images, pixels, out, device
        self.method, self.max_drop, self.workers, self.seed = method, max_drop, workers, seed
        self.targets = {split: torch.tensor([s.target for s in images.splits[split]]) for split in ("valid", "test")}
        self.base = self._logits(parent, "valid", "fp32")
        self.tries: list[Try] = []
        self.best: Try | None = None

    def explore(self, problem: Problem, count: int, around: float = _USUAL) -> None:
        """Bisect the damage that the solver may allow: more while plans keep the budget, less when one does not."""
        low, high = (math.log(max(end, _LEAST)) for end in problem.extremes())
        middle = min(max(math.log(around), low), high)
        for _ in range(count):
            proposal = problem.solve(math.exp(middle))
            attempt = (self._known(proposal) or self._attempt(proposal)) if proposal else None
            if attempt is None or attempt.accepted:
                low = middle
            else:
                high = middle
            middle = (low + high) / 2
            if high - low < _CLOSE:
                break

    def repair(self, problem: Problem, count: int) -> None:
        """Measure again what each block costs inside the best plan, where the others are packed too, and solve anew."""
        around = self.best or min(self.tries, key=lambda attempt: attempt.proposal.damage, default=None)
        if around is None:
            return
        corrected = problem.corrected(self._factors(problem, around.proposal))
        self.explore(corrected, count, max(corrected.damage_of(around.proposal.plan), _LEAST))

    def conclude(self, problem: Problem, confidence: float) -> dict[str, Any]:
        """Certify the best plan on the test split and write everything down."""
        best = self.best
        if best is None:
            closest = min(self.tries, key=lambda attempt: attempt.drop_points)
            write_record(self.out, problem, self.parent, self.tries, None, None, None)
            shutil.rmtree(self.out / "work", ignore_errors=True)
            raise Incomplete(
                f"no plan keeps the budget of {self.max_drop:g} points on {len(self.targets['valid'])} validation images "
                f"with {100 * PROBABLY:g} % confidence; "
                f"the closest, {closest.name}, loses {closest.drop_points:.2f} at {closest.ratio:.2f}x smaller; "
                f"all tries are in {self.out / 'search.csv'}"
            )
        final = self.out / "checkpoint"
        shutil.rmtree(final, ignore_errors=True)
        (self.out / "work" / best.name).replace(final)
        shutil.rmtree(self.out / "work", ignore_errors=True)
        built = read_checkpoint(final)
        base, logits = self._logits(self.parent, "test", "fp32"), self._logits(built, "test", "auto")
        proof = certify(base, logits, self.targets["test"], self.max_drop, confidence)
        against = (
            None
            if problem.objective == "size"
            else race(self.parent, final, problem.objective, self.out, str(self.device))
        )
        found = write_record(self.out, problem, self.parent, self.tries, best, proof, against)
        if proof.drop_points > self.max_drop:
            raise Incomplete(
                f"the chosen plan, {best.name}, kept the budget on the validation images but not on the test images: "
                f"{proof.reason}; give a smaller --max-drop"
            )
        return found

    def _attempt(self, proposal: Proposal) -> Try:
        """Build a plan, measure it on the validation split, and remember it."""
        name = f"plan-{len(self.tries) + 1}"
        folder = self.out / "work" / name
        built = self._build(proposal, folder)
        logits = self._logits(built, "valid", "auto")
        accuracy = score(logits, self.targets["valid"], self.base)
        attempt = Try(
            name=name,
            proposal=proposal,
            disk_bytes=built.disk_bytes,
            ratio=self.parent.disk_bytes / built.disk_bytes,
            top1=accuracy["top1"],
            drop_points=accuracy["drop_points"],
            drop_ci95=tuple(accuracy["drop_ci95"]),
            agreement=accuracy["agreement"],
            kl_divergence=divergence(self.base, logits),
            accepted=self._accepts(logits),
        )
        self.tries.append(attempt)
        say(attempt.line())
        if attempt.accepted and (self.best is None or attempt.cost < self.best.cost):
            if self.best is not None:
                shutil.rmtree(self.out / "work" / self.best.name, ignore_errors=True)
            self.best = attempt
        else:
            shutil.rmtree(folder, ignore_errors=True)
        return attempt

    def _accepts(self, logits: Tensor) -> bool:
        """Whether the drop on the validation images is probably within the budget."""
        return certify(self.base, logits, self.targets["valid"], self.max_drop, PROBABLY).certified

    def _build(self, proposal: Proposal, folder: Path) -> Checkpoint:
        found = calibrate(
            self.parent, proposal.plan, self.pixels, method=self.method, device=self.device, seed=self.seed
        )
        plan = replace(proposal.plan, activations=found.activations)
        notes = {"data": self.images.name, "packed": f"{self.method}, {len(self.pixels)} images"}
        return apply_plan(self.parent, plan, folder, calibrated=found.packed, notes=notes)

    def _factors(self, problem: Problem, proposal: Proposal) -> dict[str, float]:
        """For each layer, by how much its block's damage inside the plan differs from the sum of its estimates."""
        folder = self.out / "work" / "context"
        context = context_damages(self.parent, self._build(proposal, folder), self.pixels, self.device)
        shutil.rmtree(folder, ignore_errors=True)
        factors: dict[str, float] = {}
        for index, damage in enumerate(context):
            layers = [layer for layer in problem.damage if layer.startswith(f"blocks.{index}.")]
            estimated = sum(problem.damage[layer][proposal.plan.layers[layer]] for layer in layers)
            factor = min(max(damage / max(estimated, 1e-6), 0.25), 4.0)
            factors |= dict.fromkeys(layers, factor)
        least, most = min(factors.values()), max(factors.values())
        say(f"repair: inside the plan, blocks cost {least:.2f} to {most:.2f} times what was estimated for them alone")
        return factors

    def _known(self, proposal: Proposal) -> Try | None:
        return next((attempt for attempt in self.tries if attempt.proposal.plan == proposal.plan), None)

    def _logits(self, checkpoint: Checkpoint, split: str, compute: str) -> Tensor:
        classifier = load(checkpoint, str(self.device), compute=compute)
        check_classes(classifier, self.images)
        return logits_of(classifier, self.images.splits[split], workers=self.workers)


def _check_enough(images: Mapping[str, int], max_drop: float, confidence: float) -> None:
    """Say before the work what no plan could change: that these images are too few to choose by, or to certify with."""
    few = fewest_images(max_drop, PROBABLY)
    if few is None:
        raise PetaliteError("no number of images can show that nothing at all is lost; allow more than 0 points")
    if images["valid"] < few:
        possible = math.ceil(1000 * paired_bound(0, 0, images["valid"], PROBABLY)) / 10
        raise PetaliteError(
            f"{images['valid']} validation images cannot show that a plan loses at most {max_drop:g} in 100, not even one "
            f"that loses none of them: that takes {few:,}; give more images, or --max-drop {possible:g}"
        )
    needed = fewest_images(max_drop, confidence) or 0
    if images["test"] < needed:
        warn(
            f"{images['test']} test images cannot certify that a plan loses at most {max_drop:g} in 100, not even one that "
            f"loses none of them: that takes {needed:,}; the plan will be chosen, and not certified"
        )


def _check(
    max_drop: float, objective: str, formats: Sequence[str], merge: bool, tries: int, confidence: float, images: int
) -> None:
    if not (math.isfinite(max_drop) and 0 <= max_drop < 100):
        raise PetaliteError(f"max_drop must be points of top-1 from 0 to 100, got {max_drop:g}")
    if objective not in OBJECTIVES:
        raise PetaliteError(
            f"unknown objective '{objective}'{did_you_mean(objective, OBJECTIVES)}; known: {', '.join(OBJECTIVES)}"
        )
    for name in formats:
        get_format(name)
    if merge and objective == "size":
        raise PetaliteError("merging tokens saves no bytes; use it with --objective latency or throughput")
    if tries < 1:
        raise PetaliteError(f"a search needs at least one try, got {tries}")
    if not 0.5 <= confidence < 1:
        raise PetaliteError(f"confidence must be at least 0.5 and below 1, got {confidence:g}")
    if images < FEWEST:
        raise PetaliteError(f"{images} calibration images are too few; use at least {FEWEST}")
