"""Verbs that work on a checkpoint: quantize, evaluate, bench, profile, predict, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petalite.cli import complete
from petalite.cli import options as o
from petalite.cli.app import app, result
from petalite.errors import PetaliteError
from petalite.recipe import describe


@app.command()
def quantize(
    checkpoint: o.CheckpointPath,
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    format: Annotated[str, typer.Option(help="See `petalite ls formats`.", autocompletion=complete.formats)] = "nf4",
    keep: o.Keep = None,
    include_head: Annotated[bool, typer.Option("--include-head", help="Quantize the classifier too.")] = False,
    edges: Annotated[
        str | None,
        typer.Option(
            help="Format of the patch and position embeddings and the head, e.g. int8-channel.", show_default=False
        ),
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option(help="Tokens merged away in each block: a number, or one for each block.", show_default=False),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="A plan.json that says which layer has which format.", show_default=False)
    ] = None,
    calibrate: Annotated[
        str,
        typer.Option(help="nearest, clip, gptq or reconstruct: how weights are rounded; the last three need --data."),
    ] = "nearest",
    data: Annotated[
        str | None, typer.Option("--data", help="Images to calibrate on, unlabelled.", show_default=False)
    ] = None,
    images: Annotated[int, typer.Option(help="How many of them.")] = 256,
    device: o.Device = "auto",
    seed: o.Seed = None,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Store a checkpoint in fewer bits.

    Example: petalite quantize runs/demo/checkpoints/fp32 --format int4 --calibrate gptq --data digits --out runs/int4
    """
    from petalite.checkpoint import read_checkpoint
    from petalite.files import prepare_out, read_json
    from petalite.formats import get_format
    from petalite.merging import parse_merge
    from petalite.plan import Plan, block_count
    from petalite.quantization import apply_calibrated, apply_plan
    from petalite.quantization import quantize as quantize_checkpoint

    get_format(format)
    parent = read_checkpoint(checkpoint)
    merged = parse_merge(merge, block_count(parent.plan.layers)) if merge else ()
    if plan is not None and (keep or include_head or edges or merged):
        raise PetaliteError("a plan says it all; --keep, --include-head, --edges and --merge do not go with --plan")
    chosen = None if plan is None else Plan.from_dict(read_json(plan))
    prepare_out(out, force=force)
    if chosen is None:
        written = quantize_checkpoint(
            parent, format, out, keep=o.listed(keep) or (), include_head=include_head, edges=edges, merge=merged,
            calibration=calibrate, data=data, images=images, device=device, seed=seed or 0,
        )  # fmt: skip
    elif calibrate == "nearest" and data is None:
        written = apply_plan(parent, chosen, out)
    else:
        written = apply_calibrated(parent, chosen, out, calibrate, data, images=images, device=device, seed=seed or 0)
    facts = {
        "checkpoint": str(out),
        "format": written.plan.format,
        "kept": list(written.plan.kept),
        "merged_tokens": sum(written.plan.merge),
        "disk_bytes": written.disk_bytes,
        "ratio": parent.disk_bytes / written.disk_bytes,
    }
    result(facts, as_json, str(out))


@app.command()
def evaluate(
    checkpoint: o.CheckpointPath,
    data: o.DataPath,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    baseline: Annotated[Path | None, typer.Option(help="Checkpoint to compare with.", show_default=False)] = None,
    attention: o.Attention = "auto",
    compute: o.Compute = "auto",
    engine: o.Engine = "auto",
    batch_size: o.Batch = 32,
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
        engine=engine, batch_size=batch_size, seed=seed or 0,
    )  # fmt: skip
    result(accuracy, as_json, sentence(accuracy))


@app.command()
def bench(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoint folders.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Also write this CSV.", show_default=False)] = None,
    attention: Annotated[str, typer.Option(help="Backends, separated by commas.")] = "auto",
    compute: o.Compute = "auto",
    engine: o.Engine = "auto",
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
        Variant(f"{path.name}-{backend}" if len(backends) > 1 else path.name, path, backend, compute, engine)
        for path in checkpoints
        for backend in backends
    ]
    rows = benchmark(
        variants, batch_sizes=o.numbers(batch_sizes), throughput_batches=o.numbers(throughput_batches),
        samples=samples, seconds=seconds, rounds=rounds, device=device, threads=threads,
    )  # fmt: skip
    if out is not None:
        write_benchmark_csv(rows, out)
    result(rows, as_json, table(rows))
    if any(row["status"] != "ok" for row in rows):
        raise typer.Exit(1)


@app.command()
def profile(
    checkpoint: o.CheckpointPath,
    out: Annotated[
        Path | None,
        typer.Option(help="New folder for profile.json, trace.json and the pictures.", show_default=False),
    ] = None,
    batch_size: o.Batch = 1,
    attention: o.Attention = "auto",
    compute: o.Compute = "auto",
    engine: o.Engine = "auto",
    threads: o.Threads = None,
    force: o.Force = False,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Where the time of a forward pass goes, by kind, layer and kernel, against what this device can do.

    Example: petalite profile runs/demo/checkpoints/nf4 --batch-size 8 --out runs/profile
    """
    from petalite.measure.bench import Variant
    from petalite.profiling.run import dissect
    from petalite.profiling.text import profile_text

    variant = Variant(checkpoint.name, checkpoint, attention, compute, engine)
    found = dissect(variant, batch_size, device, threads, out=out, force=force)
    result(found, as_json, profile_text(found))


@app.command()
def predict(
    checkpoint: o.CheckpointPath,
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, globs, .tar shards, .csv or .parquet files with a column path, - for a list on stdin.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="A .csv, .jsonl or .parquet file; a gallery is written beside it as PNG.")
    ] = Path("predictions.csv"),
    gallery: Annotated[bool, typer.Option(help="Write the gallery.")] = True,
    attention: o.Attention = "auto",
    compute: o.Compute = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="auto, fused (NVIDIA GPUs), openvino (CPUs) or module (plain PyTorch); ray is short for --on ray."
        ),
    ] = "auto",
    on: Annotated[str, typer.Option(help="local, or ray: a Ray cluster, an engine on each GPU.")] = "local",
    batch_size: o.Batch = 32,
    threads: o.Threads = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what a killed run of the same images left.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Start again, replacing --out.")] = False,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """The five most likely classes of each image, of any number of images, with a gallery and the rate.

    Example: petalite predict runs/demo/checkpoints/int8 photos/ "shards/*.tar" --out predictions.parquet --resume
    """
    from petalite.prediction import predict as predict_images

    if engine == "ray":
        engine, on = "auto", "ray"
    if out.is_dir():
        out = out / "predictions.csv"
    summary = predict_images(
        checkpoint, sources, out, gallery=out.with_suffix(".png") if gallery else None, device=device, attention=attention,
        compute=compute, engine=engine, batch_size=batch_size, threads=threads, resume=resume, force=force, on=on,
    )  # fmt: skip
    result(summary, as_json, str(out))
    if summary["errors"]:
        raise typer.Exit(1)


@app.command()
def verify(checkpoint: o.CheckpointPath, as_json: o.Json = False, quiet: o.Quiet = False) -> None:
    """Check a checkpoint: hashes, tensors against its configuration and plan, preprocessing. Exit code 1 if damaged.

    Example: petalite verify runs/demo/checkpoints/nf4
    """
    from petalite.verification import verify as verify_checkpoint

    found = verify_checkpoint(checkpoint)
    result(found.as_dict(), as_json, "\n".join(found.lines()))
    if not found.ok:
        raise typer.Exit(1)
