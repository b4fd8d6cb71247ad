"""Which layer each kernel or operator belongs to: passes with every layer annotated, and their order laid on others.

    with module_layers(model):           # or fused_layers(fused)
        forward()                        # under the profiler: kernels inside "petalite:layer:blocks.0.attn.qkv"
    layers = in_their_place(names, known)

Annotating takes time itself, and a CUDA graph that is replayed has no layers at all: it is a list of kernels. So an
annotated pass tells which layers its kernels belong to, in order, and the undisturbed passes, which run the same
kernels in the same order, take the layers from there. Where the order differs the layer is not told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from functools import wraps
from typing import Any

from torch import nn
from torch.profiler import record_function

from petalite.profiling.steps import Step
from petalite.profiling.trace import LAYER


@contextmanager
def module_layers(model: nn.Module) -> Iterator[None]:
    """Annotate every module of timm's model with its name; the innermost counts."""
    handles = []
    running: list[Any] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            running.append(record_function(f"{LAYER}{name}"))
            running[-1].__enter__()

        return hook

    def leave(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    for name, module in model.named_modules():
        if name:
            handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def fused_layers(fused: Any) -> Iterator[None]:
    """Annotate what the fused engine computes with timm's names, by wrapping its steps on this instance alone."""
    blocks = fused._blocks
    index = {id(block): f"blocks.{number}" for number, block in enumerate(blocks)}
    norms = {id(getattr(block, name)): f"{index[id(block)]}.{name}" for block in blocks for name in ("norm1", "norm2")}
    norms |= {id(fused._norm_pre): "norm_pre", id(fused._norm): "norm"}
    # where in its arguments a step says what it computes, and the name that follows
    named: list[tuple[Any, str, Callable[..., str]]] = [
        (fused, "_embed", lambda *_: "patch_embed.proj"),
        (fused, "_block", lambda block, *_: index[id(block)]),
        (fused, "_read", lambda block, *_: index[id(block)]),
        (fused, "_at_once", lambda *_: "blocks"),
        (fused, "_mean", lambda *_: "norm"),
        (fused, "_normed", lambda _, norm, *__: norms[id(norm)]),
        (fused.attending, "_by", lambda *given: given[3].name.removesuffix(".proj")),
        *(
            (fused.products, way, lambda _, layer, *__: layer.name)
            for way in ("multiply", "multiply_codes", "multiply_gelu", "multiply_add")
        ),
    ]

    def annotated(step: Callable[..., Any], name_of: Callable[..., str]) -> Callable[..., Any]:
        @wraps(step)
        def run(*given: Any, **settings: Any) -> Any:
            with record_function(f"{LAYER}{name_of(*given)}"):
                return step(*given, **settings)

        return run

    for owner, name, name_of in named:
        setattr(owner, name, annotated(getattr(owner, name), name_of))
    try:
        yield
    finally:
        for owner, name, _ in named:
            delattr(owner, name)  # the class's own is there again


def in_their_place(names: Sequence[str], known: Sequence[Step]) -> list[Step | None]:
    """For each of `names`, which ran in this order, the step of the annotated pass that it is; None for one it has not.

    A pass that was divided ran `known` several times; around it are kernels that copy what goes in and comes out.
    """
    wanted = [step.name for step in known]
    found: list[Step | None] = []
    while wanted and len(found) + len(wanted) <= len(names):
        if list(names[len(found) : len(found) + len(wanted)]) == wanted:
            found += known
        else:
            found.append(None)
    found += [None] * (len(names) - len(found))
    if any(found):
        return found
    for match in SequenceMatcher(None, names, wanted, autojunk=False).get_matching_blocks():
        found[match.a : match.a + match.size] = known[match.b : match.b + match.size]
    return found
