"""From a checkpoint to a classifier: on which device, by which engine, in which precision, and why.

`petalite.engine.load` comes here for every checkpoint that the CPU engine does not know yet.

classifier = load("runs/demo/checkpoints/nf4")                       # a GPU: the fused engine; a CPU: OpenVINO
classifier = load("runs/demo/checkpoints/nf4", engine="module")      # bitsandbytes' layers in timm's model, anywhere
classifier.info.engine, classifier.info.why

What was asked for and cannot run is an error. What was left to `auto` may turn out as the plain module, and `why` says so.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from petalite import models
from petalite.attention import use_attention
from petalite.checkpoint import Checkpoint, read_checkpoint
from petalite.console import warn
from petalite.data.preprocess import Preprocess
from petalite.device import capability_of, resolve_device, unavailable_compute
from petalite.engine.attending import OWN_ATTENTION
from petalite.engine.choice import Choice, choose_compute, choose_module_compute, stored_format
from petalite.engine.classifier import Classifier, Info, Runner
from petalite.engine.cuda import Fused
from petalite.engine.expanded import CODES
from petalite.engine.graphs import Graphs
from petalite.engine.kernels.ready import get_ready
from petalite.engine.module import PlainModule
from petalite.engine.processor import COMPUTES as CPU_COMPUTES
from petalite.engine.processor import choose_on_cpu, this_processor
from petalite.engine.several import Several, device_names
from petalite.engine.weights import Network, read_network, unsupported
from petalite.errors import PetaliteError, did_you_mean
from petalite.formats import get_format
from petalite.formats.plain import DTYPES
from petalite.merging import merged_counts, use_merging
from petalite.plan import POSITIONS

if TYPE_CHECKING:
    from petalite.engine.cpu import OnCpu

#: What runs a checkpoint: `fused` on a GPU and `openvino` on a CPU where it is left to `auto`.
ENGINES = ("auto", "fused", "openvino", "module")
#: What the CPU engine calls its own attention.
_CPU_ATTENTION = "openvino"
_NAMES = {"fused": "fused engine", "openvino": "CPU engine"}
#: The oldest GPUs that Triton compiles for.
_TRITON_CAPABILITY = (7, 5)


class _Failed(Exception):
    """An engine could be built but did not run; the message says why, in a line."""


def load(
    path: str | Path | Checkpoint, device: str, attention: str, compute: str, threads: int | None, engine: str
) -> Classifier:
    """What `petalite.engine.load` gives, as it says, from the checkpoint itself."""
    if threads is not None:
        if threads < 1:
            raise PetaliteError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    if engine not in ENGINES:
        raise PetaliteError(f"unknown engine '{engine}'{did_you_mean(engine, ENGINES)}; known: {', '.join(ENGINES)}")
    devices = [resolve_device(name) for name in device_names(device)]
    name = own_engine(devices[0]) if engine in ("auto", "module") else engine
    there = isinstance(path, Checkpoint) or Path(path).is_dir()  # a mistyped path is answered at once
    if there and engine != "module" and name == "fused" and engine_missing(name, devices[0]) is None:
        get_ready(devices[0])  # while timm is imported, which takes longer than to read the checkpoint
    checkpoint = path if isinstance(path, Checkpoint) else read_checkpoint(path)
    reason = "plain PyTorch modules were asked for" if engine == "module" else None
    reason = reason or engine_unavailable(checkpoint, devices[0], name)
    if reason is None and name == "openvino":
        reason = _not_on_cpu(attention, compute)
    if reason is None:
        try:
            if name == "openvino":
                return _openvino(checkpoint, compute, threads)
            return _fused(checkpoint, devices, attention, compute)
        except _Failed as error:
            reason = f"the {_NAMES[name]} failed: {error}"
            if engine == "auto":
                warn(f"{reason}; plain PyTorch modules run instead")
    if engine not in ("auto", "module"):
        raise PetaliteError(f"{checkpoint.path} on {devices[0]}: {reason}")
    if attention == OWN_ATTENTION:
        raise PetaliteError(f"attention {OWN_ATTENTION} belongs to the fused engine: {reason}")
    return _plain(checkpoint, devices, attention, compute, reason)


def own_engine(device: torch.device) -> str:
    """The engine that `auto` takes on a device where it can: `fused` on a GPU, `openvino` on a CPU."""
    return "openvino" if capability_of(device) is None else "fused"


def engine_missing(engine: str, device: torch.device) -> str | None:
    """Why `fused` or `openvino` runs no checkpoint at all on a device; None where it may."""
    capability = capability_of(device)
    if engine == "openvino":
        if capability is not None:
            return "the CPU engine runs on CPUs"
        found = importlib.util.find_spec("openvino") is not None
        return None if found else "the CPU engine needs OpenVINO: pip install openvino"
    if capability is None:
        return "the fused engine runs on NVIDIA GPUs"
    if capability < _TRITON_CAPABILITY:
        return f"the fused engine needs compute capability 7.5 or more, this GPU has {capability[0]}.{capability[1]}"
    if importlib.util.find_spec("triton") is None:
        return "the fused engine needs Triton: pip install triton"
    return None


def engine_unavailable(checkpoint: Checkpoint, device: torch.device, engine: str | None = None) -> str | None:
    """Why an engine (None: the device's own) does not run a checkpoint on a device; None where it does."""
    name = engine or own_engine(device)
    if reason := engine_missing(name, device):
        return reason
    problem = unsupported(checkpoint)
    return f"the {_NAMES[name]} does not compute {problem}" if problem else None


def _not_on_cpu(attention: str, compute: str) -> str | None:
    """What of a request the CPU engine has no part in, so that plain modules run it; None where there is nothing."""
    if attention == OWN_ATTENTION:
        return engine_missing("fused", torch.device("cpu"))
    if attention not in ("auto", _CPU_ATTENTION):
        return f"attention {attention} is plain PyTorch's"
    if compute in DTYPES and compute not in CPU_COMPUTES:
        return f"{compute} on a CPU is plain PyTorch's"
    return None


def fused_unavailable(checkpoint: Checkpoint, device: torch.device) -> str | None:
    """Why the fused engine does not run a checkpoint on a device; None where it does."""
    return engine_unavailable(checkpoint, device, "fused")


def _openvino(checkpoint: Checkpoint, compute: str, threads: int | None) -> Classifier:
    """The CPU engine, after a first image. Raises _Failed where it does not run after all."""
    processor = this_processor()
    if compute not in ("auto", *CPU_COMPUTES):  # 8-bit floats, or a name that nothing has
        choose_module_compute(compute, checkpoint.plan.format, torch.device("cpu"))
    choice = choose_on_cpu(compute, stored_format(checkpoint.plan), bool(checkpoint.plan.activations), processor)
    try:
        from petalite.engine.cpu import open_on_cpu

        engine: OnCpu = open_on_cpu(checkpoint, choice.compute, threads, processor)
        engine.forward(torch.zeros(1, 3, *engine.image_size, dtype=torch.uint8))
    except PetaliteError:
        raise
    except Exception as error:  # whatever OpenVINO raises, the plain module may still run
        raise _Failed(f"{type(error).__name__}: {_first_line(error)}") from error
    return _classifier(
        checkpoint, [engine], engine="openvino", attention=_CPU_ATTENTION, choice=choice, scales=engine.scales
    )


def _fused(checkpoint: Checkpoint, devices: list[torch.device], attention: str, compute: str) -> Classifier:
    """The fused engine on each device. Raises _Failed where it does not run after all."""
    oldest = min((capability for device in devices if (capability := capability_of(device))), default=None)
    choice = choose_compute(compute, stored_format(checkpoint.plan), oldest, devices[0].type)
    network = read_network(checkpoint, devices[0])
    odd = next((linear for linear in network.linears() if linear.weight.shape[1] % 16), None)
    if choice.compute in CODES and odd is not None:
        reason = f"{odd.name} has {odd.weight.shape[1]} inputs, not a multiple of 16, as {choice.compute} needs"
        if compute != "auto":
            raise PetaliteError(f"{reason}; use bf16 or fp16")
        sixteen = "fp16" if unavailable_compute("bf16", oldest, "cuda") else "bf16"
        choice = Choice(sixteen, f"{choice.why}, but {reason}")
    engines = [_fused_on(network, device, choice.compute, attention) for device in devices]
    runners = [Graphed(engine) for engine in engines]
    return _classifier(
        checkpoint, runners, engine="fused", attention=engines[0].attention, choice=choice, scales=engines[0].scales
    )


def _fused_on(network: Network, device: torch.device, compute: str, attention: str) -> Fused:
    """The engine on one device, after a first image. Raises PetaliteError for an attention that is asked for in vain."""
    fused = None
    try:
        fused = Fused(network, device, compute, attention)
        fused(torch.zeros(1, 3, *network.shape.image_size, dtype=torch.uint8, device=device)).cpu()
    except Exception as error:  # whatever a compiler or a driver raises, the plain module may still run
        if isinstance(error, torch.OutOfMemoryError) or (fused is None and isinstance(error, PetaliteError)):
            raise
        raise _Failed(f"{type(error).__name__} on {device}: {_first_line(error)}") from error
    return fused


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


class Graphed:
    """The fused engine in CUDA graphs."""

    def __init__(self, fused: Fused) -> None:
        self.fused = fused
        self.device = fused.device
        self.graphs = Graphs(fused, (3, *fused.shape.image_size), fused.device)
        self.forward = self.graphs.forward

    def report(self) -> dict[str, object]:
        """The engine's choices and the graphs."""
        return {**self.fused.report(), "graphs": self.graphs.report()}


def _plain(
    checkpoint: Checkpoint, devices: list[torch.device], attention: str, compute: str, reason: str
) -> Classifier:
    """timm's model on each device."""
    try:
        choice = choose_module_compute(compute, checkpoint.plan.format, devices[0])
    except PetaliteError as error:
        raise PetaliteError(f"{error} ({reason})") from error
    dtype = DTYPES[choice.compute]
    preprocess = Preprocess.from_config(checkpoint.config)
    runners, name = [], attention
    for device in devices:
        model = assemble(checkpoint, device, dtype)
        name = use_attention(model, attention, device, dtype).name
        use_merging(model, checkpoint.plan.merge)
        runners.append(PlainModule(model, preprocess, dtype, device))
    choice = Choice(choice.compute, f"{choice.why}; {reason}")
    return _classifier(checkpoint, runners, engine="module", attention=name, choice=choice)


def _classifier(
    checkpoint: Checkpoint,
    runners: Sequence[Runner],
    *,
    engine: str,
    attention: str,
    choice: Choice,
    scales: str | None = None,
) -> Classifier:
    preprocess = Preprocess.from_config(checkpoint.config)
    info = Info(
        checkpoint=str(checkpoint.path),
        architecture=str(checkpoint.config["architecture"]),
        format=checkpoint.plan.format,
        attention=attention,
        compute=choice.compute,
        device=", ".join(str(runner.device) for runner in runners),
        classes=len(checkpoint.classes),
        image_size=preprocess.size,
        parameters=checkpoint.outline.parameters,
        disk_bytes=checkpoint.disk_bytes,
        merged_tokens=sum(merged_counts(checkpoint.plan.merge, checkpoint.outline.patches)),
        engine=engine,
        why=choice.why,
        scales=scales,
    )
    runner: Runner = runners[0] if len(runners) == 1 else Several(runners)
    return Classifier(runner, preprocess, checkpoint.classes, info)


def assemble(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The plain timm module with each layer built by its format, everything else in `dtype`, ready for inference."""
    for name in sorted(set(checkpoint.plan.layers.values())):
        get_format(name).require(device)
    model = checkpoint.skeleton()
    rest = {
        name: checkpoint.tensors[name].to(device, dtype)
        for name in model.state_dict()
        if name in checkpoint.tensors and checkpoint.tensors[name].is_floating_point()
    }
    for name, stored in checkpoint.plan.layers.items():
        if not isinstance(model.get_submodule(name) if name != POSITIONS else None, nn.Linear):
            # a convolution or the position embedding: used as a plain tensor, whatever its format on disk
            rest[models.weight_name(name)] = checkpoint.unpacked(name).to(device, dtype)
            continue
        bias = checkpoint.tensors.get(f"{name}.bias")
        model.set_submodule(name, get_format(stored).build(checkpoint.layer(name), bias, dtype, device))
        rest.pop(f"{name}.weight", None)
        rest.pop(f"{name}.bias", None)
    missing = set(model.load_state_dict(rest, strict=False, assign=True).missing_keys)
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if left:
        raise PetaliteError(
            f"{checkpoint.path}: no tensor was given for {', '.join(left[:3])} ({len(missing)} missing)"
        )
    return model.eval().requires_grad_(False)
