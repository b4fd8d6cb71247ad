"""How a study was measured, as terms and what they mean here, and the files to go on with.

    for term, lines in method(study): ...          # ("Machine", ["AMD EPYC 9B45, 2 cores", …])
    command(study)                                  # "petalite run --data 'photos of flowers' …"

Everything comes from what the study recorded; what was not recorded is not mentioned.
"""

from __future__ import annotations

import json
import shlex
from typing import Any
from urllib.parse import quote

from petalite.report import words
from petalite.report.inputs import Study
from petalite.report.variants import block, number, text

#: Keys of the environment that say what the machine is; all others are versions.
MACHINE = ("cpu", "gpu", "gpus", "platform", "threads", "device", "hostname")
COPIES_SHOWN = 8


def method(study: Study) -> list[tuple[str, list[str]]]:
    """(term, lines) for the page's list; terms without anything to say are left out."""
    found = [
        ("Images", _images(study)),
        ("Notes on the data", [text(note) for note in _items(study.data.get("notes"))]),
        ("Copies across splits", _copies(study)),
        ("Accuracy", _accuracy(study)),
        ("Latency", _latency(study)),
        ("Throughput", _throughput(study)),
        ("Memory", _memory(study)),
        ("Kernels", _kernels(study)),
        ("Machine", machine(study)),
        ("Versions", _versions(study)),
        ("Seed", [text(study.run["seed"])] if study.run.get("seed") is not None else []),
    ]
    return [(term, lines) for term, lines in found if lines]


def machine(study: Study) -> list[str]:
    """The processors the study ran on, the GPU first."""
    environment = study.environment
    cpu = environment.get("cpu")
    cores = number(block(cpu).get("cores"))
    processor = text(block(cpu).get("model")) if isinstance(cpu, dict) else text(cpu)
    lines = [
        *(_gpu(gpu) for gpu in _items(environment.get("gpus")) or [environment.get("gpu")]),
        ", ".join(filter(None, [processor, words.counted(int(cores), "core") if cores else ""])),
        text(environment.get("platform")),
    ]
    threads = number(environment.get("threads"))
    if threads:
        lines.append(words.counted(int(threads), "thread"))
    return list(dict.fromkeys(line for line in lines if line))


def command(study: Study) -> str:
    """The command that repeats the study, quoted for a shell; empty when it was not recorded."""
    recorded = study.run.get("command")
    if isinstance(recorded, list):
        return shlex.join(str(part) for part in recorded)
    return text(recorded)


def recipe(study: Study) -> str:
    """The recipe as indented JSON; empty when there is none."""
    found = study.run.get("recipe")
    return json.dumps(found, indent=2, ensure_ascii=False, default=str) if found else ""


def steps(study: Study) -> list[tuple[str, str, str]]:
    """(step, status, duration) of the run."""
    found = block(study.run, "steps")
    return [
        (name, text(step.get("status")), words.seconds(number(step.get("seconds"))))
        for name, step in found.items()
        if isinstance(step, dict) and step.get("status") != "running"  # the report itself, which is being written
    ]


def files(study: Study) -> list[tuple[str, list[tuple[str, str]]]]:
    """(what it is, [(name, address relative to the page)]) for the files of the study that are there."""
    names = [variant.name for variant in study.variants]
    groups = (
        (
            "Results",
            ["results.csv", "results.json", "ablation_results.csv", "ablation.json", "run.json", "train/metrics.csv"],
        ),
        ("Predictions", [f"predictions/{name}.csv" for name in names]),
        ("Raw latencies", [f"measure/{name}.json" for name in names]),
    )
    found = [
        (what, [(path.rsplit("/", 1)[-1], f"../{quote(path)}") for path in paths if (study.out / path).is_file()])
        for what, paths in groups
    ]
    return [(what, links) for what, links in found if links]


def _images(study: Study) -> list[str]:
    data = study.data
    split = text(data.get("split"))
    lines = []
    if study.images is not None:
        measured = f"Accuracy: {words.counted(study.images, 'image')}"
        classes = data.get("classes")
        count = len(classes) if isinstance(classes, list) else number(classes)
        measured += f" of {words.counted(int(count), 'class', 'classes')}" if count else ""
        lines.append(f"{measured}{f', split “{split}”' if split else ''}.")
    sizes = {name: number(value) for name, value in block(study.run, "data", "images").items()}
    if any(sizes.values()):
        lines.append(", ".join(f"{name} {int(size):,}" for name, size in sizes.items() if size is not None))
    if data.get("fingerprint"):
        lines.append(f"fingerprint {text(data['fingerprint'])}")
    return lines


def _copies(study: Study) -> list[str]:
    groups = [group for group in _items(study.data.get("copies_across_splits")) if isinstance(group, list)]
    lines = [" = ".join(text(path) for path in group) for group in groups[:COPIES_SHOWN]]
    if len(groups) > COPIES_SHOWN:
        lines.append(f"and {words.counted(len(groups) - COPIES_SHOWN, 'group')} more")
    return lines


def _accuracy(study: Study) -> list[str]:
    if not any(variant.top1 is not None for variant in study.ran):
        return []
    lines = [
        "All intervals are 95 % intervals: Wilson's for top-1, Tango's score interval for paired drops.",
        "F1 is the mean over the classes; weighted F1 stands in the table as a tooltip.",
    ]
    if study.baseline and any(variant.drop is not None for variant in study.ran if variant is not study.baseline):
        lines.append(f"Drops, agreement and McNemar's exact p compare with {study.baseline.name} on the same images.")
    return lines


def _latency(study: Study) -> list[str]:
    timed = [variant for variant in study.ran if variant.p50_ms is not None]
    if not timed:
        return []
    batches = sorted({int(variant.latency.get("batch_size", 1)) for variant in timed})
    counts = [int(variant.latency["samples"]) for variant in timed if "samples" in variant.latency]
    lines = [
        f"Median of single forward passes at batch {words.listed(str(batch) for batch in batches)}, "
        "with the pixels already on the device: no decoding, no copying."
    ]
    if counts:
        between = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
        lines.append(f"{between} timed passes a variant, after warm-up, in a process of its own.")
    rounds = sorted(set(study.rounds.values()))
    if rounds and rounds[-1] > 1:
        many = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        lines.append(f"{many} rounds, interleaved between the variants, so that drift of the machine hits all alike.")
    return lines


def _throughput(study: Study) -> list[str]:
    sizes = sorted({batch for variant in study.ran for batch, _ in variant.throughput_by_batch})
    return (
        [f"Passes queued back to back; the best of the batch sizes {words.listed(map(str, sizes))}."] if sizes else []
    )


def _memory(study: Study) -> list[str]:
    kinds = {variant.memory_kind for variant in study.ran if variant.peak_bytes is not None}
    lines = {
        "device": "Peak memory allocated on the device.",
        "rss": "Peak resident memory of the process that ran the variant, Python and libraries included.",
    }
    return [*(lines[kind] for kind in sorted(kinds) if kind in lines), *(["1 MB is 10⁶ bytes."] if kinds else [])]


def _kernels(study: Study) -> list[str]:
    tops = [(variant.name, variant.kernel_top[0]) for variant in study.ran if variant.kernel_top]
    note = "Times under the profiler, which slows every kernel a little: read them as shares, and speed from latency."
    return [note] * bool(tops) + [
        f"{name}: the most time in {words.shortened(text(top.get('name')), 60)} "
        f"({words.milliseconds(number(top.get('ms')))}, {words.counted(int(number(top.get('calls')) or 0), 'call')})"
        for name, top in tops
    ]


def _versions(study: Study) -> list[str]:
    environment = study.environment
    known = {name: value for name, value in environment.items() if name not in MACHINE} | block(environment, "versions")
    found = [f"{name} {value}" for name, value in known.items() if isinstance(value, (str, int, float)) and value]
    return [", ".join(found)] if found else []


def _gpu(gpu: Any) -> str:
    if not isinstance(gpu, dict):
        return text(gpu)
    versions = [f"{name} {text(gpu[name])}" for name in ("driver", "cuda") if gpu.get(name)]
    return ", ".join(filter(None, [text(gpu.get("name")), *versions]))


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
