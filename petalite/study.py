"""A study: train, store in several formats, measure every variant on the same images and machine, report.

    results = run(Recipe.from_toml(Path("recipes/digits.toml")), out="runs/digits")

Each step is written down in `run.json` with a hash of its inputs. A step whose inputs have not changed is skipped, so a
study that was killed goes on where it stopped, and one whose recipe changed repeats only what the change touches. A
variant that cannot run on this machine is a row with its reason.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from petalite.ablation import ablate, check_formats
from petalite.checkpoint import read_checkpoint
from petalite.console import say, warn
from petalite.data import DataReport, ImageData, check_data, open_data
from petalite.device import resolve_device
from petalite.engine import load
from petalite.errors import Incomplete, PetaliteError
from petalite.evaluation import logits_of
from petalite.files import atomic, disk_bytes, prepare_out, read_json, sha256, write_json
from petalite.formats import get_format
from petalite.measure.accuracy import score
from petalite.measure.bench import Variant, benchmark
from petalite.measure.environment import environment
from petalite.measure.names import parse_variant
from petalite.plan import select
from petalite.prediction import rows_of, write_predictions
from petalite.quantization import quantize
from petalite.recipe import Recipe
from petalite.report import recommend, write_report
from petalite.results import results_of, write_csv
from petalite.training import check_start, layers_of, start_checkpoint, train_from


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    force: bool = False,
    device: str = "auto",
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Run or go on with the study of `recipe` in the folder `out`; return the contents of its results.json.

    Raises PetaliteError for input that cannot work, and Incomplete at the end when a variant failed.
    """
    variants = {name: parse_variant(name) for name in recipe.variants}
    resolve_device(device)
    images = open_data(recipe.data, recipe.seed)
    if not images.splits["test"]:
        raise PetaliteError(f"{images.name} has no test images to compare variants on")
    if recipe.train.method == "qat":
        raise PetaliteError("a study starts from plain weights; recover a quantized checkpoint with `petalite train`")
    check_start(recipe.model, recipe.pretrained)
    select(recipe.keep, layers_of(recipe.model, recipe.model_args))
    if recipe.ablation:
        check_formats(recipe.ablation)
    folder = prepare_out(Path(out), resume=resume, force=force)
    return _Study(recipe, variants, images, folder, device, command).run()


@dataclass
class _Outcome:
    """What is known of one variant: its logits on the test images, or why there are none."""

    variant: Variant
    format: str
    status: str = "ok"
    reason: str | None = None


class _Study:
    def __init__(
        self,
        recipe: Recipe,
        variants: Mapping[str, tuple[str, str, str, str]],
        images: ImageData,
        out: Path,
        device: str,
        command: Sequence[str],
    ) -> None:
        self.recipe, self.variants, self.out, self.device = recipe, variants, out, device
        self.images, self.report = images, check_data(images)
        recorded = read_json(out / "run.json") if (out / "run.json").exists() else {}
        self.steps: dict[str, dict[str, Any]] = recorded.get("steps", {})
        self.record: dict[str, Any] = {
            "schema": 1,
            "command": list(command) or recorded.get("command", []),
            "recipe": recipe.as_dict(),
            "seed": recipe.seed,
            "environment": environment(),
        }

    def run(self) -> dict[str, Any]:
        self._check_data()
        self._train()
        self._formats()
        outcomes = self._evaluate()
        results = self._results(outcomes, self._benchmark(outcomes))
        ablation_failed = self._ablation()
        self._report(results, ablation_failed)
        bad = [row for row in results["variants"] if row["status"] == "failed"]
        if bad:
            raise Incomplete(
                f"{len(bad)} of {len(self.variants)} variants failed: {bad[0]['name']}: {bad[0]['reason']}"
            )
        if ablation_failed:
            raise Incomplete(f"the ablation failed: {ablation_failed}")
        return results

    def _check_data(self) -> None:
        for line in self.report.lines():
            say(f"data: {line}")
        if self.report.unreadable:
            warn(f"{len(self.report.unreadable)} unreadable images are left out of the study")
            self.images = self.images.without(self.report.unreadable)
        self.record["data"] = _described(self.images, self.report)

    def _train(self) -> None:
        recipe = self.recipe
        model = Path(recipe.model)
        origin = sha256(model / "model.safetensors") if (model / "model.safetensors").is_file() else recipe.model
        inputs = _digest(
            self.report.fingerprint, asdict(replace(recipe.train, save_minutes=0)), origin,
            recipe.pretrained, recipe.image_size, recipe.model_args, recipe.seed,
        )  # fmt: skip

        outputs = [self._checkpoint("fp32")]
        if self._done("train", inputs, outputs):
            start = None
        else:  # before anything is written: where a download fails, the folder is as it was
            start = start_checkpoint(
                recipe.model, recipe.train.method, pretrained=recipe.pretrained, classes=self.images.classes,
                image_size=recipe.image_size or None, model_args=recipe.model_args, seed=recipe.seed,
            )  # fmt: skip
        self._save()

        def work() -> None:
            assert start is not None
            checkpoint = train_from(start, self.images, self.out, recipe.train, seed=recipe.seed, device=self.device)
            say(f"train: written to {checkpoint.path}")

        self._step("train", inputs, outputs, work)

    def _formats(self) -> None:
        for name in dict.fromkeys(format for format, *_ in self.variants.values()):
            if name == "fp32":
                continue
            inputs = _digest(sha256(self._checkpoint("fp32") / "model.safetensors"), name, self.recipe.keep)
            target = self._checkpoint(name)
            keep = self.recipe.keep if not get_format(name).plain else ()

            def work(name: str = name, target: Path = target, keep: tuple[str, ...] = keep) -> None:
                notes = {"data": self.record["data"]["name"], "quantized from": "../fp32"}
                quantize(self._checkpoint("fp32"), name, target, keep=keep, notes=notes)

            self._step(f"format {name}", inputs, [target], work)

    def _evaluate(self) -> list[_Outcome]:
        """Logits of every variant on the test images, and its predictions CSV."""
        samples = self.images.splits["test"]
        outcomes = []
        for name, (format, attention, compute, engine) in self.variants.items():
            outcome = _Outcome(Variant(name, self._checkpoint(format), attention, compute, engine), format)
            outcomes.append(outcome)
            inputs = _digest(
                sha256(outcome.variant.checkpoint / "model.safetensors"),
                sha256(outcome.variant.checkpoint / "config.json"),
                self.report.fingerprint, attention, compute, engine, self.device, torch.__version__,
            )  # fmt: skip
            predictions = self.out / "predictions" / f"{name}.csv"

            def work(outcome: _Outcome = outcome, predictions: Path = predictions) -> None:
                variant = outcome.variant
                threads = self.recipe.measure.threads or None
                classifier = load(
                    variant.checkpoint, self.device, variant.attention, variant.compute, threads, variant.engine
                )
                logits = logits_of(classifier, samples)
                with atomic(self._logits(variant.name)) as temporary, temporary.open("wb") as file:
                    np.save(file, logits.numpy())
                paths = [sample.path.resolve() for sample in samples]
                targets = [self.images.classes[sample.target] for sample in samples]
                write_predictions(predictions, rows_of(classifier, logits, paths, targets))

            try:
                self._step(f"evaluate {name}", inputs, [predictions, self._logits(name)], work)
            except Incomplete:
                raise
            except PetaliteError as error:
                outcome.status, outcome.reason = "skipped", str(error)
                say(f"{name}: skipped: {error}")
            except (RuntimeError, torch.OutOfMemoryError) as error:
                outcome.status, outcome.reason = "failed", str(error).strip().splitlines()[0]
                warn(f"{name} failed: {outcome.reason}")
        return outcomes

    def _benchmark(self, outcomes: list[_Outcome]) -> dict[str, dict[str, Any]]:
        """Latency, throughput, memory and kernels of the variants that run, by name; measured together, interleaved."""
        variants = [outcome.variant for outcome in outcomes if outcome.status == "ok"]
        if not variants:
            return {}
        measure = self.recipe.measure
        inputs = _digest(
            [(variant.name, variant.engine, sha256(variant.checkpoint / "model.safetensors")) for variant in variants],
            asdict(measure), self.device, self.record["environment"],
        )  # fmt: skip
        path = self.out / "measure" / "benchmark.json"

        def work() -> None:
            rows = benchmark(
                variants,
                batch_sizes=measure.batch_sizes,
                throughput_batches=measure.throughput_batches,
                samples=measure.samples,
                seconds=measure.seconds,
                rounds=measure.rounds,
                device=self.device,
                threads=measure.threads or None,
                on_raw=lambda name, raw: write_json(self.out / "measure" / f"{name}.json", raw),
            )
            write_json(path, rows)

        self._step("benchmark", inputs, [path], work)
        return {row["name"]: row for row in read_json(path)}

    def _results(
        self,
        outcomes: list[_Outcome],
        benched: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, Any]:
        targets = torch.tensor([sample.target for sample in self.images.splits["test"]])
        baseline = self.recipe.variants[0]
        base_logits = self._read_logits(baseline) if outcomes[0].status == "ok" else None
        rows = []
        for outcome in outcomes:
            accuracy = None
            if outcome.status == "ok":
                try:
                    accuracy = score(self._read_logits(outcome.variant.name), targets, base_logits)
                    if outcome.variant.name == baseline:  # the same predictions by definition, not by chance
                        accuracy["drop_ci95"] = [0.0, 0.0]
                except PetaliteError as error:
                    outcome.status, outcome.reason = "failed", str(error)
            plan = read_checkpoint(outcome.variant.checkpoint).plan
            rows.append(
                {
                    "name": outcome.variant.name,
                    "checkpoint": str(outcome.variant.checkpoint.relative_to(self.out)),
                    "format": outcome.format,
                    "attention": outcome.variant.attention,
                    "compute": outcome.variant.compute,
                    "plan": {"format": plan.format, "rest": plan.rest, "kept": list(plan.kept)},
                    "status": outcome.status,
                    "reason": outcome.reason,
                    "disk_bytes": disk_bytes(outcome.variant.checkpoint),
                    "accuracy": accuracy,
                    "measured": benched.get(outcome.variant.name),
                }
            )
        results = results_of(
            rows,
            environment=self.record["environment"],
            data={
                "name": self.images.name,
                "split": "test",
                "images": len(targets),
                "classes": len(self.images.classes),
                "fingerprint": self.report.fingerprint,
            },
            baseline=baseline,
            budget_points=self.recipe.budget_points,
        )
        results["recommendations"] = recommend(results)
        write_json(self.out / "results.json", results)
        write_csv(self.out / "results.csv", results)
        return results

    def _ablation(self) -> str:
        """The layer ablation, where the recipe asks for one; why it failed, or nothing. The rest is reported either way."""
        files = [self.out / "ablation_results.csv", self.out / "ablation.json"]
        if not self.recipe.ablation:
            if self.steps.pop("ablation", None):  # an earlier recipe's
                for path in files:
                    path.unlink(missing_ok=True)
            return ""
        parent, threads = self._checkpoint("fp32"), self.recipe.measure.threads or None
        inputs = _digest(
            sha256(parent / "model.safetensors"), self.report.fingerprint, self.recipe.ablation, self.device, threads,
            torch.__version__,
        )  # fmt: skip

        def work() -> None:
            options: dict[str, Any] = {"device": self.device, "threads": threads, "out": self.out, "resume": True}
            say(ablate(parent, self.images, self.recipe.ablation, **options)["sentence"])

        try:
            self._step("ablation", inputs, files, work)
        except (PetaliteError, RuntimeError) as error:  # running out of memory is the latter
            for path in files:
                path.unlink(missing_ok=True)
            reason = str(error).strip().partition("\n")[0]
            warn(f"the ablation failed: {reason}")
            return reason
        return ""

    def _report(self, results: Mapping[str, Any], ablation_failed: str) -> None:
        page = self.out / "report" / "index.html"
        ablation = self.out / "ablation.json"
        found = sha256(ablation) if ablation.is_file() else ablation_failed
        inputs = _digest(results, self.record["data"], self.record["command"], found)
        self._step("report", inputs, [page], lambda: say(f"report: {write_report(self.out)}"))

    def _step(self, name: str, inputs: str, outputs: Sequence[Path], work: Callable[[], None]) -> None:
        """Do a step unless it was done with the same inputs and its outputs are still there."""
        if self._done(name, inputs, outputs):
            say(f"{name}: up to date")
            return
        if name == "train" and self.steps.get(name, {}).get("inputs") not in (None, inputs):
            shutil.rmtree(self.out / "train", ignore_errors=True)
        self.steps[name] = {"status": "running", "inputs": inputs}
        self._save()
        started = time.monotonic()
        try:
            work()
        except Exception as error:
            self.steps[name] = {"status": "failed", "inputs": inputs, "reason": str(error).partition("\n")[0]}
            self._save()
            raise
        self.steps[name] = {"status": "done", "inputs": inputs, "seconds": round(time.monotonic() - started, 2)}
        self._save()

    def _done(self, name: str, inputs: str, outputs: Sequence[Path]) -> bool:
        done = self.steps.get(name, {})
        return (done.get("status"), done.get("inputs")) == ("done", inputs) and all(path.exists() for path in outputs)

    def _save(self) -> None:
        write_json(self.out / "run.json", {**self.record, "steps": self.steps})

    def _checkpoint(self, format: str) -> Path:
        return self.out / "checkpoints" / format

    def _logits(self, variant: str) -> Path:
        return self.out / "measure" / f"{variant}.logits.npy"

    def _read_logits(self, variant: str) -> Tensor:
        return torch.from_numpy(np.load(self._logits(variant), allow_pickle=False))


def _described(images: ImageData, report: DataReport) -> dict[str, Any]:
    return {
        "name": images.name,
        "root": str(images.root.resolve()),
        "fingerprint": report.fingerprint,
        "images": {split: len(samples) for split, samples in images.splits.items()},
        "classes": len(images.classes),
        "notes": list(images.notes),
        "copies_across_splits": report.as_dict()["copies_across_splits"],
        "unreadable": report.as_dict()["unreadable"],
    }


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
