"""The command line: verbs only. Each calls the function of its name; heavy imports happen inside, so help is quick.

Results go to stdout (one JSON document with `--json`), everything else to stderr. Exit codes: 0 done; 1 done, but
something failed or a budget was not met; 2 wrong use or bad input.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from petalite import options as o
from petalite.errors import PetaliteError, did_you_mean
from petalite.recipe import Recipe, demo_recipe, describe


class _Verbs(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            ctx.fail(f"no verb '{args[0]}'{did_you_mean(args[0], self.commands)}; `{ctx.info_name} --help` lists them")
        return super().resolve_command(ctx, args)


_SETTINGS: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None, "cls": _Verbs}
app = typer.Typer(
    help="From a Vision Transformer and a folder of images to the smallest, fastest classifier within your budget.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    **_SETTINGS,
)
data_app = typer.Typer(help="Get and check images.", **_SETTINGS)
app.add_typer(data_app, name="data")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/demo"),
    resume: o.Resume = False,
    force: o.Force = False,
    device: o.Device = "auto",
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """The whole study in about three minutes: a small ViT on the embedded digits, five variants, the report.

    Example: petalite demo
    """
    _study(demo_recipe().with_options({"seed": seed}), out, resume, force, device, as_json)


@app.command()
def run(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe in TOML; options override it.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/study"),
    data: Annotated[str | None, o.option("data", "--data")] = None,
    model: o.Model = None,
    pretrained: o.Pretrained = None,
    image_size: o.ImageSize = None,
    method: o.Method = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    accumulate: o.Accumulate = None,
    lr: o.LearningRate = None,
    augment: o.Augmentation = None,
    flip: o.Flip = None,
    rank: o.Rank = None,
    alpha: o.Alpha = None,
    class_weights: o.ClassWeights = None,
    checkpointing: o.Checkpointing = None,
    precision: o.Precision = None,
    save_minutes: o.SaveMinutes = None,
    variants: Annotated[
        str | None, typer.Option(help=describe("variants") + " Separated by commas.", show_default=False)
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help=describe("keep") + " Separated by commas.", show_default=False)
    ] = None,
    budget: Annotated[float | None, o.option("budget_points", "--budget")] = None,
    threads: o.Threads = None,
    resume: o.Resume = False,
    force: o.Force = False,
    device: o.Device = "auto",
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """A study: train, store in several formats, measure every variant, predict, report.

    Example: petalite run --data flowers102 --model vit_base_patch16_224 --epochs 6 --out runs/flowers
    """
    if recipe is None and (data is None or model is None):
        raise PetaliteError("name a recipe, or at least --data and --model; `petalite demo` needs neither")
    base = Recipe.from_toml(recipe) if recipe else Recipe()
    chosen = base.with_options(
        {
            "data": data,
            "model": model,
            "pretrained": o.truth(pretrained),
            "image_size": image_size,
            "variants": o.listed(variants),
            "keep": o.listed(keep),
            "budget_points": budget,
            "seed": seed,
            "measure.threads": threads,
            **o.training(method, epochs, batch_size, accumulate, lr, augment, flip, rank, alpha, class_weights,
                        checkpointing, precision, save_minutes),
        }
    )  # fmt: skip
    _study(chosen, out, resume, force, device, as_json)


@app.command()
def train(
    data: o.DataPath,
    out: Annotated[Path, typer.Option(help="Folder for train/ and checkpoints/fp32.")],
    model: Annotated[str, typer.Option(help=describe("model"), show_default=False)],
    pretrained: o.Pretrained = None,
    image_size: o.ImageSize = None,
    method: o.Method = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    accumulate: o.Accumulate = None,
    lr: o.LearningRate = None,
    augment: o.Augmentation = None,
    flip: o.Flip = None,
    rank: o.Rank = None,
    alpha: o.Alpha = None,
    class_weights: o.ClassWeights = None,
    checkpointing: o.Checkpointing = None,
    precision: o.Precision = None,
    save_minutes: o.SaveMinutes = None,
    resume: o.Resume = False,
    force: o.Force = False,
    device: o.Device = "auto",
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Fine-tune a model on images: the best epoch, merged to plain fp32. Several GPUs: torchrun -m petalite train …

    Example: petalite train --data flowers102 --model vit_base_patch16_224 --method lora --out runs/flowers
    """
    from petalite.files import disk_bytes, prepare_out
    from petalite.training import train as train_model

    recipe = Recipe().with_options(
        {
            "data": data,
            "seed": seed,
            **o.training(method, epochs, batch_size, accumulate, lr, augment, flip, rank, alpha, class_weights,
                        checkpointing, precision, save_minutes),
        }
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        prepare_out(out, resume=resume, force=force)
    checkpoint = train_model(
        data, model, out, recipe.train, pretrained=pretrained != o.YesNo.no, image_size=image_size, seed=recipe.seed, device=device
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        _result(
            {"checkpoint": str(checkpoint.path), "disk_bytes": disk_bytes(checkpoint.path)},
            as_json,
            str(checkpoint.path),
        )


@app.command()
def quantize(
    checkpoint: o.CheckpointPath,
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    format: Annotated[str, typer.Option(help="See `petalite ls formats`.")] = "nf4",
    keep: Annotated[
        str | None, typer.Option(help=describe("keep") + " Separated by commas.", show_default=False)
    ] = None,
    include_head: Annotated[bool, typer.Option("--include-head", help="Quantize the classifier too.")] = False,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Store a checkpoint in fewer bits.

    Example: petalite quantize runs/demo/checkpoints/fp32 --format nf4 --keep first_last --out runs/nf4
    """
    from petalite.checkpoint import read_checkpoint
    from petalite.files import prepare_out
    from petalite.formats import get_format
    from petalite.quantization import quantize as quantize_checkpoint

    get_format(format)
    parent = read_checkpoint(checkpoint)
    prepare_out(out, force=force)
    written = quantize_checkpoint(parent, format, out, keep=o.listed(keep) or (), include_head=include_head)
    facts = {
        "checkpoint": str(out),
        "format": written.plan.format,
        "kept": list(written.plan.kept),
        "disk_bytes": written.disk_bytes,
    }
    _result(facts, as_json, str(out))


@app.command()
def evaluate(
    checkpoint: o.CheckpointPath,
    data: o.DataPath,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    baseline: Annotated[Path | None, typer.Option(help="Checkpoint to compare with.", show_default=False)] = None,
    attention: o.Attention = "auto",
    compute: o.Compute = "auto",
    batch_size: Annotated[int, typer.Option(help="Images a forward pass.")] = 32,
    device: o.Device = "auto",
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Accuracy with 95 % intervals, and the paired drop against a baseline.

    Example: petalite evaluate runs/demo/checkpoints/nf4 --data digits --baseline runs/demo/checkpoints/fp32
    """
    from petalite.evaluation import evaluate as evaluate_checkpoint
    from petalite.evaluation import sentence

    accuracy = evaluate_checkpoint(
        checkpoint, data, split=split, baseline=baseline, device=device, attention=attention, compute=compute,
        batch_size=batch_size, seed=seed or 0,
    )  # fmt: skip
    _result(accuracy, as_json, sentence(accuracy))


@app.command()
def bench(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoint folders.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Also write this CSV.", show_default=False)] = None,
    attention: Annotated[str, typer.Option(help="Backends, separated by commas.")] = "auto",
    compute: o.Compute = "auto",
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes for latency, separated by commas.")] = "1",
    throughput_batches: Annotated[str, typer.Option(help="Batch sizes of the throughput sweep.")] = "1,8,32",
    samples: Annotated[int, typer.Option(help=describe("measure.samples"))] = 30,
    seconds: Annotated[float, typer.Option(help=describe("measure.seconds"))] = 3.0,
    rounds: Annotated[int, typer.Option(help=describe("measure.rounds"))] = 5,
    threads: o.Threads = None,
    force: o.Force = False,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Latency, throughput and memory, each checkpoint in a process of its own, in interleaved rounds.

    Example: petalite bench runs/demo/checkpoints/fp32 runs/demo/checkpoints/nf4 --attention sdpa,fa2
    """
    from petalite.measure.bench import Variant, benchmark, table, write_benchmark_csv

    if out is not None and out.exists() and not force:
        raise PetaliteError(f"{out} exists; add --force to replace it")
    backends = o.listed(attention) or ["auto"]
    variants = [
        Variant(f"{path.name}-{backend}" if len(backends) > 1 else path.name, path, backend, compute)
        for path in checkpoints
        for backend in backends
    ]
    rows = benchmark(
        variants, batch_sizes=o.numbers(batch_sizes), throughput_batches=o.numbers(throughput_batches),
        samples=samples, seconds=seconds, rounds=rounds, device=device, threads=threads,
    )  # fmt: skip
    if out is not None:
        write_benchmark_csv(rows, out)
    _result(rows, as_json, table(rows))
    if any(row["status"] != "ok" for row in rows):
        raise typer.Exit(1)


@app.command()
def profile(
    checkpoint: o.CheckpointPath,
    batch_size: Annotated[int, typer.Option(help="Images a forward pass.")] = 1,
    attention: o.Attention = "auto",
    compute: o.Compute = "auto",
    threads: o.Threads = None,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Where the time of a forward pass goes: attention, matrix products, dequantization, the rest; the top kernels.

    Example: petalite profile runs/demo/checkpoints/nf4 --batch-size 8
    """
    from petalite.measure.bench import Variant, profile_table
    from petalite.measure.bench import profile as profile_variant

    kernels = profile_variant(Variant(checkpoint.name, checkpoint, attention, compute), batch_size, device, threads)
    _result(kernels, as_json, profile_table(kernels))


@app.command()
def predict(
    checkpoint: o.CheckpointPath,
    sources: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, or - for a list on stdin.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The CSV; a gallery is written beside it as PNG.")] = Path(
        "predictions.csv"
    ),
    gallery: Annotated[bool, typer.Option(help="Write the gallery.")] = True,
    attention: o.Attention = "auto",
    compute: o.Compute = "auto",
    batch_size: Annotated[int, typer.Option(help="Images a forward pass.")] = 32,
    threads: o.Threads = None,
    force: o.Force = False,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """The five most likely classes of each image, as CSV, with a gallery and the rate.

    Example: petalite predict runs/demo/checkpoints/int8 photos/ "more/*.jpg" --out predictions.csv
    """
    from petalite.prediction import expand
    from petalite.prediction import predict as predict_images

    if out.is_dir():
        out = out / "predictions.csv"
    if out.exists() and not force:
        raise PetaliteError(f"{out} exists; add --force to replace it")
    paths = expand(sources, sys.stdin)
    summary = predict_images(
        checkpoint, paths, out, gallery=out.with_suffix(".png") if gallery else None, device=device, attention=attention,
        compute=compute, batch_size=batch_size, threads=threads,
    )  # fmt: skip
    _result(summary, as_json, str(out))
    if summary["errors"]:
        raise typer.Exit(1)


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="Folder of a study.", show_default=False)],
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw a study's report again from its results.

    Example: petalite report runs/demo
    """
    from petalite.report import write_report

    page = write_report(study)
    _result({"report": str(page)}, as_json, str(page))


@app.command()
def verify(checkpoint: o.CheckpointPath, as_json: o.Json = False, quiet: o.Quiet = False) -> None:
    """Check a checkpoint: hashes, tensors against its configuration and plan, preprocessing. Exit code 1 if damaged.

    Example: petalite verify runs/demo/checkpoints/nf4
    """
    from petalite.verification import verify as verify_checkpoint

    found = verify_checkpoint(checkpoint)
    _result(found.as_dict(), as_json, "\n".join(found.lines()))
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def doctor(
    checkpoint: Annotated[Path | None, typer.Argument(help="Also check this checkpoint.", show_default=False)] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """What this machine runs: versions, device, formats, attention, compute; text to paste into an issue.

    Example: petalite doctor
    """
    from petalite.doctor import diagnose, render

    found = diagnose(checkpoint)
    _result(found, as_json, render(found))
    if not found.get("checkpoint", {}).get("ok", True):
        raise typer.Exit(1)


@app.command(name="ls")
def list_known(
    kind: Annotated[str, typer.Argument(help="formats, attention, compute or models.", show_default=False)],
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """What there is, and what of it runs on this machine.

    Example: petalite ls formats
    """
    from petalite.doctor import listing

    rows = listing(kind, device)
    width = max(len(row["name"]) for row in rows)
    _result(rows, as_json, "\n".join(f"{row['name']:{width}}  {row['about']}" for row in rows))


@data_app.command(name="check")
def data_check(
    folder: Annotated[str, typer.Argument(help=describe("data"), show_default=False)],
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Unreadable files, copies across splits, class balance, sizes, fingerprint. Exit code 1 if files are unreadable.

    Example: petalite data check flowers102
    """
    from petalite.data import check_data, open_data

    found = check_data(open_data(folder, seed or 0))
    _result(found.as_dict(), as_json, "\n".join(found.lines()))
    if found.unreadable:
        raise typer.Exit(1)


@data_app.command(name="fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="flowers102.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("flowers102"),
    source: Annotated[str, typer.Option(help="official or kaggle.")] = "official",
    mirror: Annotated[
        str | None, typer.Option(help="Another address for the official archives.", show_default=False)
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Download a data set into train/, valid/ and test/; a download that was cut off goes on.

    Example: petalite data fetch flowers102 --out flowers102
    """
    from petalite.data.fetch import fetch

    folder = fetch(name, out, source=source, mirror=mirror)
    _result({"data": str(folder)}, as_json, str(folder))


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        code = app(standalone_mode=False)
    except PetaliteError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; add --resume to go on", 130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a verb without its arguments: its help is the answer
            print(error, file=sys.stderr)
            sys.exit(2)
        if isinstance(error, _wrong_use()):
            _fail(error.format_message(), 2)
        _fail(f"unexpected: {type(error).__name__}: {error}; PETALITE_DEBUG=1 shows where", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _wrong_use() -> Any:
    """The class of wrong-use errors, which typer takes from click or, in newer versions, brings along."""
    return next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _fail(message: str, code: int) -> None:
    if os.environ.get("PETALITE_DEBUG") == "1":
        raise
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    if "--json" in sys.argv:
        print(json.dumps({"error": line}))
    sys.exit(code)


def _study(recipe: Recipe, out: Path, resume: bool, force: bool, device: str, as_json: bool) -> None:
    from petalite.study import run as run_study
    from petalite.study import summary

    results = run_study(recipe, out, resume=resume, force=force, device=device, command=["petalite", *sys.argv[1:]])
    _result(results, as_json, summary(results, out))


def _result(value: Any, as_json: bool, text: str) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)
