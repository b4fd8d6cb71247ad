"""Write, run, compare, and only then call it done.

found = export("runs/demo/checkpoints/fp32", "onnx", "runs/onnx", data="digits", inputs="pixels")

What was written stands under a temporary name until its own runtime has answered on the test images: the same class as
Petalite's on nearly all of them, or there is no export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from petalite.card import model_card, score_rows
from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.data import ImageData, open_data
from petalite.errors import Incomplete, PetaliteError, did_you_mean
from petalite.export.check import agreement, answers_of, chosen_samples, largest_difference, reference
from petalite.export.spans import with_spans
from petalite.export.targets import INPUTS, TARGETS, Job, Target, get_target
from petalite.files import atomic_folder, disk_bytes, prepare_out, write_json, write_text
from petalite.measure.accuracy import score
from petalite.plan import Plan

#: Of how many images the answer has to be Petalite's own.
REQUIRED = {"plain": 0.998, "int8": 0.99}
#: From so many images on, one that 8 bits answer otherwise is no reason: a photo between two classes is not rare.
_ONE_OF = 20
SCHEMA = 1


def export(
    checkpoint: str | Path | Checkpoint,
    to: str,
    out: str | Path,
    *,
    data: str | Path | ImageData,
    int8: bool = False,
    preprocess: str = "none",
    images: int | None = None,
    force: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Write `checkpoint` as `to` (one of TARGETS) into the folder `out`, checked on the test images of `data`.

    int8: multiply in 8 bits. preprocess: what of it is inside, one of INPUTS. images: check on as many (None: all).
    The folder also gets `config.json` (preprocessing, class names), `export.json` (what is returned) and a README.md.
    Raises PetaliteError for what the target cannot do, and Incomplete, with nothing written, where its runtime's
    answers are not Petalite's.
    """
    target = get_target(to)
    _check_wishes(target, int8, preprocess)
    target.require()
    source = checkpoint if isinstance(checkpoint, Checkpoint) else read_checkpoint(checkpoint)
    opened = data if isinstance(data, ImageData) else open_data(data, seed)
    samples = chosen_samples(opened, images)
    prepare_out(Path(out), force=force)
    expected, targets = reference(source, opened, samples)
    job = Job(with_spans(source, opened, seed) if int8 else source, preprocess, int8)
    required = REQUIRED["int8" if int8 else "plain"]
    with atomic_folder(Path(out)) as folder:
        exporter = target.module()
        exporter.write(job, folder)
        feed = target.checked_on or preprocess
        answers = answers_of(exporter.run(job, folder), feed, job.preprocess, samples, len(source.classes))
        same = agreement(answers, expected)
        if same < required and not (int8 and one_differs(same, len(samples))):
            raise Incomplete(
                f"{to}: {exporter.runtime()} agrees with Petalite on {100 * same:.2f} % of {len(samples)} images, "
                f"{_needed(required, int8, len(samples))} are needed; nothing was written"
            )
        found = {
            "schema": SCHEMA,
            "target": to,
            "int8": int8,
            "input": INPUTS[preprocess],
            "checkpoint": source.path.name,
            "format": source.plan.format,
            "runtime": exporter.runtime(),
            "images": len(samples),
            "data": opened.name,
            "agreement": same,
            "required": required,
            "largest_difference": largest_difference(answers, expected),
            "accuracy": score(answers, targets, expected),
            "petalite": score(expected, targets),
            "disk_bytes": disk_bytes(folder),
        }
        if not (folder / "config.json").exists():
            write_json(folder / "config.json", source.config)
        write_json(folder / "export.json", found)
        write_text(folder / "README.md", _card(source, folder, found))
    return {**found, "out": str(out)}


def one_differs(agreement: float, images: int) -> bool:
    """Whether all images but one are answered alike, and they are enough for that to say little."""
    return images >= _ONE_OF and round((1 - agreement) * images) <= 1


def _needed(required: float, int8: bool, images: int) -> str:
    return f"{100 * required:.1f} %{', or all but one,' if int8 and images >= _ONE_OF else ''}"


def sentence(found: Mapping[str, Any]) -> str:
    """What `export` returned, in words."""
    accuracy, own = found["accuracy"], found["petalite"]
    needed = _needed(found["required"], found["int8"], found["images"])
    low, high = accuracy["top1_ci95"]
    return "\n".join(
        [
            f"{found['out']}: {found['target']}{', int8' if found['int8'] else ''}, {found['disk_bytes'] / 1e6:.2f} MB",
            f"takes {found['input']}",
            f"checked by {found['runtime']} on {found['images']} test images: same class as Petalite on "
            f"{100 * found['agreement']:.2f} % ({needed} needed), logits differ by at most "
            f"{found['largest_difference']:.2g}",
            f"top-1 {100 * accuracy['top1']:.2f} % [{100 * low:.2f}, {100 * high:.2f}], Petalite's "
            f"{100 * own['top1']:.2f} %",
        ]
    )


def _check_wishes(target: Target, int8: bool, preprocess: str) -> None:
    """Raise PetaliteError for an 8-bit export or an input that the target does not have."""
    if preprocess not in INPUTS:
        raise PetaliteError(
            f"unknown preprocessing '{preprocess}'{did_you_mean(preprocess, INPUTS)}; known: {', '.join(INPUTS)}"
        )
    if preprocess not in target.inputs:
        able = ", ".join(name for name, other in TARGETS.items() if preprocess in other.inputs)
        raise PetaliteError(f"{target.name} has no --preprocess {preprocess}; targets that do: {able}")
    if int8 and not target.int8:
        able = ", ".join(name for name, other in TARGETS.items() if other.int8)
        raise PetaliteError(f"{target.name} has no --int8; targets that do: {able}")


def _card(source: Checkpoint, folder: Path, found: Mapping[str, Any]) -> str:
    """The folder's README.md: a checkpoint's card, with how the exported file was checked."""
    plain = Plan(source.plan.format, source.plan.layers, source.plan.rest, source.plan.merge)
    if found["target"] in ("timm", "transformers"):
        plain = replace(Plan("fp32", dict.fromkeys(source.outline.layers, "fp32")), rest="fp32")
    notes = {
        "exported to": f"{found['target']}{', products in int8' if found['int8'] else ''}",
        "takes": found["input"],
        "checked by": f"{found['runtime']}: the same class as Petalite on {100 * found['agreement']:.2f} %",
        "data": found["data"],
        **score_rows(found["accuracy"], f"{found['images']} test images"),
    }
    return model_card(source.config, plain, found["disk_bytes"], notes, load=_LOAD[found["target"]])


_LOAD = {
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(None, {session.get_inputs()[0].name: batch})[0]""",
    "openvino": """import openvino

model = openvino.Core().compile_model("model.xml", "CPU")
logits = model(batch)[0]""",
    "pt2": """import torch

model = torch._inductor.aoti_load_package("model.pt2")
logits = model(batch)""",
    "timm": """import timm

model = timm.create_model("local-dir:path/to/this/folder", pretrained=True).eval()
logits = model(batch)""",
    "transformers": """from transformers import pipeline

classify = pipeline("image-classification", model="path/to/this/folder")
classify("photo.jpg")""",
}
