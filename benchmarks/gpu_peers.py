"""Petalite's engine beside what a user would otherwise run on the same GPU, in one run, all with the same weights.

    python benchmarks/gpu_peers.py --list
    python benchmarks/gpu_peers.py --models vit_large_patch16_224 --batches 1,256 --only "petalite-*,timm-*"
    python benchmarks/gpu_peers.py --waterfall --checkpoint runs/flowers/checkpoints/fp32 --data flowers102
    python benchmarks/gpu_peers.py --device cpu --models tiny --batches 2 --only "timm-bf16"     # tries the flow

Random weights by shape, random images, 102 classes. All candidates of a batch size are loaded together and timed in
rounds (gpu_rounds.py); each is held against FP32 eager and against the best compiled BF16 of the same run, against what
the matrix products alone would allow, and, in its logits, against FP32 of the same weights and of the weights before
quantization. A candidate that fails is a row with its reason.

Rows are appended to one CSV whose name says hardware and versions, and what stands there is not measured again: a long
comparison can be cut into calls (`--minutes`), and one that is killed goes on where it was; rows of which it had timed a
part only say so, and are measured again. FP32 eager and the lean
compiled BF16 are part of every call.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import gc
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from gpu_candidates import ANCHORS, CANDIDATES, Candidate, Materials, random_images, random_materials
from gpu_rounds import ROUNDS, DeviceLost, Run, figures, load_candidate, measure, prepare, product_rates
from gpu_waterfall import COLUMNS as WATERFALL_COLUMNS
from gpu_waterfall import agreement, random_rows, real_rows
from result_files import result_path
from torch import Tensor

from petalite.device import resolve_device
from petalite.measure.environment import environment, hardware

#: Images times tokens of a product whose rate bounds what is possible: a batch of 256 at 197 tokens.
_PRODUCT_ROWS = 50_432
_PACKAGES = ("torch", "triton", "timm", "transformers", "bitsandbytes", "torchao")
#: The status of a row whose rounds were not all timed, since the program was stopped.
CUT_SHORT = "cut short"
_MACHINE = ("hardware", "driver", "cuda", "python", "petalite", *_PACKAGES)
COLUMNS = (
    *("run", "model", "batch_size", "candidate", "about", "status", "reason", "stored", "scales", "ran"),
    *("images_per_s", "p50_ms", "p95_ms", "samples", "ratio_fp32", "ratio_bf16", "best_bf16"),
    *("products", "products_images_per_s", "products_share", "peak_bytes", "stored_bytes", "load_s", "prepare_s"),
    *("agreement", "logit_error", "fp32_agreement", "fp32_logit_error", "images"),
)  # fmt: skip


class Table:
    """A CSV that rows are appended to, each at once."""

    def __init__(self, path: Path, columns: Sequence[str], machine: dict[str, Any]) -> None:
        self.path, self.columns, self.machine = path, (*columns, *_MACHINE), machine
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self.rows = list(reader)
                if tuple(reader.fieldnames or ()) != self.columns:
                    raise SystemExit(f"{path} has other columns; move it away")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(self.columns)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; None is left empty, numbers are rounded to six digits."""
        values = {**row, **self.machine}
        line = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in values.items()}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(line)
        shown = " ".join(f"{key}={line[key]}" for key in ("images_per_s", "p50_ms") if line.get(key) is not None)
        name = row.get("candidate") or row.get("step")
        print(
            f"{row.get('model') or row.get('weights')} x{row['batch_size']} {name}: {shown or row['reason']}",
            flush=True,
        )

    def has(self, model: str, batch: int, candidate: str) -> bool:
        """Whether such a row stands there already, and was not cut short."""
        wanted = (model, str(batch), candidate)
        return any(
            (row["model"], row["batch_size"], row["candidate"]) == wanted and row["status"] != CUT_SHORT
            for row in self.rows
        )


@dataclass
class Call:
    """What one call of this program knows."""

    name: str
    device: torch.device
    seconds: float
    rounds: int
    ends: float

    def left_s(self) -> float:
        """Seconds until no more is begun."""
        return self.ends - time.monotonic()


class Comparison:
    """One model's candidates, loaded together, at one batch size after the other."""

    def __init__(self, model: str, batches: Sequence[int], images: int, call: Call, table: Table) -> None:
        self.model, self.batches, self.call, self.table = model, batches, call, table
        self.materials: Materials = random_materials(model, call.device)
        self.images = random_images(max(images, *batches), self.materials.size).to(call.device)
        rows = _PRODUCT_ROWS if call.device.type == "cuda" else 64
        self.products = product_rates(self.materials, rows, min(0.3, call.seconds))
        self.exact: dict[str, Tensor] = {}
        self.loaded: dict[str, Run] = {}

    def run(self, wanted: Sequence[Candidate], anchors: Sequence[Candidate], again: bool) -> list[str]:
        """Measure what does not stand in the table yet; the names of what there was no time for."""
        left: list[str] = []
        for batch in self.batches:
            missing = [one for one in wanted if again or not self.table.has(self.model, batch, one.name)]
            if not missing:
                continue
            if self.call.left_s() < 0:
                left += [f"{self.model} x{batch} {one.name}" for one in missing]
                continue
            group = [*anchors, *(one for one in missing if one not in anchors)]
            left += self._batch(batch, group, len(anchors))
        return left

    def forget(self, keep: Sequence[Candidate]) -> None:
        """Give back the memory of all candidates but some."""
        names = {candidate.name for candidate in keep}
        self.loaded = {name: run for name, run in self.loaded.items() if name in names}
        gc.collect()
        if self.call.device.type == "cuda":
            torch.cuda.empty_cache()

    def _batch(self, batch: int, group: Sequence[Candidate], anchors: int) -> list[str]:
        runs: list[Run] = []
        left: list[str] = []
        inputs: dict[torch.dtype, Tensor] = {}
        timed = False
        try:
            for place, candidate in enumerate(group):
                if place >= anchors and self.call.left_s() < 1.5 * self.call.seconds * (len(runs) + 1):
                    left.append(f"{self.model} x{batch} {candidate.name}")
                    continue
                if candidate.name not in self.loaded:
                    self.loaded[candidate.name] = load_candidate(candidate, self.materials)
                run = self.loaded[candidate.name].again()
                runs.append(run)
                prepare(run, self.materials, self.images, batch, inputs)
                self.loaded[candidate.name].held_bytes = run.held_bytes
            measure(runs, self.call.device, self.call.seconds, self.call.rounds)
            timed = True
        finally:  # what was measured is kept, whatever happens
            for run in runs:
                if run.reason is None and not timed:
                    run.status = CUT_SHORT
                if run.reason is not None or run.samples_ms:
                    self.table.append(self._row(run, batch, runs))
        return left

    def _row(self, run: Run, batch: int, runs: Sequence[Run]) -> dict[str, Any]:
        candidate, measured = run.candidate, figures(run, batch)
        p50 = measured.get("p50_ms")
        fp32 = next((_p50(other) for other in runs if other.candidate.name == ANCHORS[0]), None)
        compiled = {other.candidate.name: _p50(other) for other in runs if other.candidate.compiled_bf16}
        best = min((name for name, ms in compiled.items() if ms), key=lambda name: compiled[name] or 0.0, default=None)
        bound = self.products.get(candidate.ceiling)
        tensors = self.materials.checkpoint(candidate.stored).tensors if run.reason is None else {}
        row = {
            "run": self.call.name,
            "model": self.model,
            "batch_size": batch,
            "candidate": candidate.name,
            "about": candidate.about,
            "status": run.status,
            "reason": run.reason,
            "stored": candidate.stored,
            "scales": run.loaded.scales if run.loaded else None,
            "ran": run.loaded.ran if run.loaded else None,
            **measured,
            "ratio_fp32": fp32 / p50 if fp32 and p50 else None,
            "ratio_bf16": (compiled[best] or 0.0) / p50 if best and p50 else None,
            "best_bf16": best,
            "products": candidate.ceiling if bound else None,
            "products_images_per_s": bound,
            "products_share": measured["images_per_s"] / bound if bound and measured else None,
            "stored_bytes": sum(tensor.nbytes for tensor in tensors.values()) or None,
            **agreement(run.logits, self._exact(candidate.stored, run)),
            **agreement(run.logits, self._exact("fp32", run), "fp32_"),
            "images": len(run.logits) if run.logits is not None else None,
        }
        return {key: row.get(key) for key in COLUMNS}

    def _exact(self, stored: str, run: Run) -> Tensor:
        if run.logits is None:
            return torch.empty(0)
        if stored not in self.exact:
            self.exact[stored] = self.materials.exact(stored, self.images.cpu())
        return self.exact[stored]


def _p50(run: Run) -> float | None:
    return figures(run, 1).get("p50_ms")


def compare(options: argparse.Namespace, call: Call, table: Table) -> list[str]:
    """Every model, group of candidates and batch size; the names of what there was no time for."""
    patterns = options.only.split(",")
    wanted = [one for one in CANDIDATES if any(fnmatch.fnmatchcase(one.name, pattern) for pattern in patterns)]
    anchors = [one for one in CANDIDATES if one.name in ANCHORS] if options.anchors else []
    if not wanted:
        raise SystemExit(f"no candidate is named like {options.only}; --list names them")
    left: list[str] = []
    for model in options.models.split(","):
        batches = [int(size) for size in options.batches.split(",")]
        if not options.again and all(table.has(model, batch, one.name) for batch in batches for one in wanted):
            continue
        comparison = Comparison(model, batches, options.images, call, table)
        for start in range(0, len(wanted), options.together):
            left += comparison.run(wanted[start : start + options.together], anchors, options.again)
            comparison.forget(anchors)
        comparison.forget([])
        del comparison
    return left


def waterfall(options: argparse.Namespace, call: Call, table: Table) -> None:
    """The steps for each model's shape, then for the checkpoint."""
    batches = [int(size) for size in options.batches.split(",")]
    rest = (call.device, batches, options.merge, options.only, call.seconds, call.rounds)
    for model in filter(None, options.models.split(",")):
        for row in random_rows(model, *rest):
            table.append({**row, "run": call.name})
    if options.checkpoint:
        for row in real_rows(options.checkpoint, options.data, *rest):
            table.append({**row, "run": call.name})


def machine_columns() -> dict[str, Any]:
    """This machine and its versions, as columns."""
    found = environment()
    gpu = next(iter(found["gpus"]), {})
    versions = {**found["versions"], "torchao": _version("torchao"), "triton": _version("triton")}
    return {
        "hardware": hardware(found),
        "driver": gpu.get("driver"),
        "cuda": gpu.get("cuda"),
        **{key: found[key] for key in ("python", "petalite")},
        **{key: versions[key] for key in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="vit_large_patch16_224,vit_base_patch16_224", help="timm names, or 'tiny'")
    parser.add_argument("--batches", default="1,8,32,256")
    parser.add_argument(
        "--only", default="*", help="names of candidates or steps, with * and ?, and commas between them"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each candidate and batch size")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--minutes", type=float, default=8.0, help="after these, nothing more is begun")
    parser.add_argument("--together", type=int, default=len(CANDIDATES), help="candidates loaded at the same time")
    parser.add_argument("--images", type=int, default=64, help="random images, at least, that logits are compared on")
    parser.add_argument("--again", action="store_true", help="measure also what stands in the CSV")
    parser.add_argument("--no-anchors", dest="anchors", action="store_false", help="leave out what is in every call")
    parser.add_argument("--list", action="store_true", help="name the candidates")
    parser.add_argument("--waterfall", action="store_true", help="Petalite's steps one after the other instead")
    parser.add_argument("--checkpoint", type=Path, help="of the waterfall: a checkpoint stored in fp32")
    parser.add_argument("--data", default="flowers102", help="of the waterfall: labelled photos")
    parser.add_argument("--merge", default="", help="of the waterfall: tokens merged in each block; half in all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and append; 1 when time ran out or the device was lost: another call goes on."""
    options = parse(arguments)
    if options.list:
        print("\n".join(f"{one.name:34} {one.about}" for one in CANDIDATES))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was measured is written
    machine = machine_columns()
    path = result_path(options.out, "gpu-waterfall" if options.waterfall else "gpu-peers")
    table = Table(path, WATERFALL_COLUMNS if options.waterfall else COLUMNS, machine)
    ends = time.monotonic() + 60 * options.minutes
    call = Call(
        time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        resolve_device(options.device),
        options.seconds,
        options.rounds,
        ends,
    )
    try:
        left = waterfall(options, call, table) if options.waterfall else compare(options, call, table)
    except DeviceLost as error:
        print(f"the device was lost: {error}; call again to go on without it", file=sys.stderr)
        return 1
    print(path)
    if left:
        print(f"no time for {len(left)}: {', '.join(left)}; call again to go on", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
