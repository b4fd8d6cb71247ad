"""What `gpu_peers.py` compares: Petalite's engine and what a user would otherwise run, all with the same weights.

A candidate is loaded once and then runs batches that lie on the device: uint8 pixels for Petalite, normalized images in
its own precision for the others, so that normalizing counts for the former alone. What cannot run says why.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petalite import models
from petalite.calibration import calibrate
from petalite.checkpoint import Checkpoint
from petalite.data import Preprocess
from petalite.engine import load
from petalite.engine.cuda import Fused
from petalite.engine.graphs import Graphs
from petalite.engine.weights import read_network
from petalite.errors import PetaliteError
from petalite.export.transformers_folder import as_transformers
from petalite.formats import get_format
from petalite.formats.plain import DTYPES
from petalite.importers.weights import current_name
from petalite.plan import Plan
from petalite.quantization import packed_checkpoint

CLASSES = 102
#: A model for trying the flow on a CPU, and what timm is told to make it.
TINY = "tiny"
_TINY_ARGUMENTS = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
_CALIBRATION_IMAGES = 32
_SEED_OF_CALIBRATION = 1


@dataclass
class Loaded:
    """A candidate that is ready: `forward` takes images (N, 3, H, W) of `takes` on the device and returns logits.

    ran: what is known of the kernels, in a few words. scales: how inputs of 8-bit products get theirs.
    """

    forward: Callable[[Tensor], Tensor]
    takes: torch.dtype
    ran: str = ""
    scales: str | None = None
    compute: str = ""


class Materials:
    """A model's weights in every format, what they answer in FP32, and ranges of activations; made when asked for."""

    def __init__(self, parent: Checkpoint, device: torch.device, calibration: Tensor | None = None) -> None:
        self.parent, self.device = parent, device
        self.preprocess = Preprocess.from_config(parent.config)
        self._calibration = calibration
        self._made: dict[str, Checkpoint] = {}
        self._spans: dict[str, tuple[float, float]] = {}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.preprocess.size

    def checkpoint(self, stored: str, *, static: bool = False) -> Checkpoint:
        """The weights in format `stored`, in memory. static: with the ranges that layers' inputs were seen to take."""
        if stored not in self._made:
            self._made[stored] = self._packed(stored)
        made = self._made[stored]
        return replace(made, plan=replace(made.plan, activations=self.spans() if static else {}))

    def spans(self) -> dict[str, tuple[float, float]]:
        """Ranges of the layers' inputs on the calibration images: random ones unless others were given."""
        if not self._spans:
            pixels = self._calibration
            if pixels is None:
                pixels = random_images(_CALIBRATION_IMAGES, self.size, seed=_SEED_OF_CALIBRATION)
            self._spans = calibrate(
                self.parent, self.parent.plan, pixels, method="nearest", device=self.device
            ).activations
        return self._spans

    def module(self, stored: str, dtype: torch.dtype) -> nn.Module:
        """timm's model with the weights that format `stored` keeps, as plain tensors of `dtype`, on the device."""
        checkpoint = self.checkpoint(stored)
        model = checkpoint.skeleton()
        model.load_state_dict(checkpoint.plain_tensors(), assign=True)
        return model.to(self.device, dtype).eval().requires_grad_(False)

    @torch.inference_mode()
    def exact(self, stored: str, pixels: Tensor) -> Tensor:
        """FP32 logits on the CPU of these weights for uint8 pixels: what the candidates are held against."""
        model = self.module(stored, torch.float32)
        parts = [model(self.preprocess.normalize(some.to(self.device))).cpu() for some in pixels.split(32)]
        return torch.cat(parts)

    def _packed(self, stored: str) -> Checkpoint:
        if stored == self.parent.plan.format:
            return self.parent
        plan = Plan.uniform(stored, rest=get_format(stored).rest, layers=self.parent.outline.layers)
        return packed_checkpoint(self.parent, plan)


def random_materials(name: str, device: torch.device) -> Materials:
    """timm's model `name` with random weights, also in its head, and 102 classes; or TINY."""
    arguments: dict[str, Any] = {"model_args": _TINY_ARGUMENTS, "image_size": 32} if name == TINY else {}
    classes = [f"class {index}" for index in range(CLASSES)]
    timm_name = "vit_tiny_patch16_224" if name == TINY else name
    config, tensors = models.create(timm_name, pretrained=False, classes=classes, **arguments)
    generator = torch.Generator().manual_seed(0)
    tensors["head.weight"] = 0.02 * torch.randn(tensors["head.weight"].shape, generator=generator)
    plan = Plan("fp32", dict.fromkeys(models.layers(models.build(config)), "fp32"), "fp32")
    return Materials(Checkpoint(Path(f"{name} (random weights)"), config, plan, tensors), device)


def random_images(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """uint8 (count, 3, *size) with structure at several scales: plain noise looks the same to a model everywhere."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(count, 3, *size)
    for cells in (2, 5, 14, size[0]):
        image += F.interpolate(torch.rand(count, 3, cells, cells, generator=generator), size, mode="bilinear")
    return (image * (255 / 4)).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Candidate:
    """Something to compare. stored: the weights' format. ceiling: whose products bound it, `fp32` for no bound that is
    measured. compiled_bf16: whether it is one of those whose best every ratio is taken to."""

    name: str
    about: str
    load: Callable[[Materials], Loaded]
    stored: str = "fp32"
    ceiling: str = "bf16"
    compiled_bf16: bool = False


def transformers_eager(materials: Materials, dtype: torch.dtype, flash: bool = False) -> Loaded:
    """transformers' ViTForImageClassification as it comes."""
    flash_attn = flash and importlib.util.find_spec("flash_attn") is not None
    model = _transformers(materials, dtype, "flash_attention_2" if flash_attn else "sdpa")
    if not flash or flash_attn:
        ran = "FlashAttention-2 of flash-attn" if flash_attn else "PyTorch's choice of attention"
        return Loaded(lambda x: model(pixel_values=x).logits, dtype, ran)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def forward(x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return model(pixel_values=x).logits

    return Loaded(forward, dtype, "PyTorch's FlashAttention (flash-attn is not installed)")


def transformers_compiled(materials: Materials, mode: str) -> Loaded:
    """The same in BF16, compiled as a whole as far as it goes."""
    _many_shapes()
    model = torch.compile(_transformers(materials, torch.bfloat16, "sdpa"), mode=mode, dynamic=False)
    return Loaded(lambda x: model(pixel_values=x).logits, torch.bfloat16, f"torch.compile {mode}")


def timm_model(materials: Materials, mode: str | None) -> Loaded:
    """timm's model in BF16, as it comes or compiled."""
    model: Any = materials.module("fp32", torch.bfloat16)
    if mode is not None:
        _many_shapes()
        model = torch.compile(model, mode=mode, dynamic=False, fullgraph=True)
    return Loaded(model, torch.bfloat16, f"torch.compile {mode}" if mode else "eager")


def torchao_model(materials: Materials, kind: str) -> Loaded:
    """timm's model with torchao's dynamic FP8 or INT8 (weights and activations, a scale for each row), compiled."""
    if importlib.util.find_spec("torchao") is None:
        raise PetaliteError("torchao is not installed")
    import torchao.quantization as torchao

    if kind == "fp8":
        config = torchao.Float8DynamicActivationFloat8WeightConfig(granularity=torchao.PerRow())
    else:
        config = torchao.Int8DynamicActivationInt8WeightConfig()
    _many_shapes()
    model: Any = materials.module("fp32", torch.bfloat16)
    torchao.quantize_(model, config, filter_fn=lambda module, name: isinstance(module, nn.Linear) and "blocks" in name)
    # not max-autotune: a minute of trials for each product, and where they were waited for, cuBLAS won by 2.2 times
    model = torch.compile(model, mode="reduce-overhead", dynamic=False, fullgraph=True)
    return Loaded(model, torch.bfloat16, f"torchao {metadata.version('torchao')}, torch.compile reduce-overhead")


def lean_model(materials: Materials, mode: str = "default") -> Loaded:
    """A ViT written for speed in plain PyTorch, BF16: one compiled block for all, the whole in a CUDA graph."""
    _many_shapes()
    shape: Any = materials.parent.skeleton()
    tensors = {
        name: value.to(materials.device, torch.bfloat16) for name, value in materials.parent.plain_tensors().items()
    }
    heads, (high, wide) = shape.blocks[0].attn.num_heads, shape.patch_embed.patch_size
    eps = shape.norm.eps

    def embed(x: Tensor, weight: Tensor, bias: Tensor, token: Tensor, positions: Tensor) -> Tensor:
        B, _, H, W = x.shape
        cut = x.view(B, 3, H // high, high, W // wide, wide).permute(0, 2, 4, 1, 3, 5).reshape(B, -1, 3 * high * wide)
        return torch.cat((token.expand(B, -1, -1), F.linear(cut, weight, bias)), dim=1) + positions

    def block(x: Tensor, *parts: Tensor) -> Tensor:
        norm1, norm1_bias, qkv, qkv_bias, proj, proj_bias, norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias = parts
        B, N, C = x.shape
        normed = F.layer_norm(x, (C,), norm1, norm1_bias, eps)
        query, key, value = F.linear(normed, qkv, qkv_bias).view(B, N, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(B, N, C)
        x = x + F.linear(attended, proj, proj_bias)
        hidden = F.gelu(F.linear(F.layer_norm(x, (C,), norm2, norm2_bias, eps), fc1, fc1_bias))
        return x + F.linear(hidden, fc2, fc2_bias)

    def finish(x: Tensor, norm: Tensor, norm_bias: Tensor, head: Tensor, head_bias: Tensor) -> Tensor:
        return F.linear(F.layer_norm(x[:, 0], x.shape[-1:], norm, norm_bias, eps), head, head_bias)

    first, each, last = (
        torch.compile(part, mode=mode, dynamic=False, fullgraph=True) for part in (embed, block, finish)
    )
    names = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    blocks = [
        [tensors[f"blocks.{index}.{name}.{kind}"] for name in names for kind in ("weight", "bias")]
        for index in range(len(shape.blocks))
    ]
    patches = (tensors["patch_embed.proj.weight"].flatten(1), tensors["patch_embed.proj.bias"])
    ends = [tensors[f"{name}.{kind}"] for name in ("norm", "head") for kind in ("weight", "bias")]

    def forward(x: Tensor) -> Tensor:
        x = first(x, *patches, tensors["cls_token"], tensors["pos_embed"])
        for parts in blocks:
            x = each(x, *parts)
        return last(x, *ends)

    return Loaded(_graphed(forward, materials), torch.bfloat16, f"blocks compiled ({mode}), one CUDA graph")


def bitsandbytes_model(materials: Materials, stored: str, attention: str) -> Loaded:
    """The reference's way: bitsandbytes' layers in timm's model, eager; the path that formats nf4 and int8 take in
    Petalite with engine="module"."""
    classifier = load(materials.checkpoint(stored), str(materials.device), attention, "auto", engine="module")
    info = classifier.info
    return Loaded(classifier.forward, DTYPES[info.compute], f"attention {info.attention}, compute {info.compute}")


def petalite_model(materials: Materials, stored: str, compute: str, way: str = "") -> Loaded:
    """Petalite's fused engine. way: `token` or `calibrated` scales, where they are not what the engine takes by itself."""
    checkpoint = materials.checkpoint(stored, static=way == "calibrated")
    if way == "token" and compute == "fp8":
        if materials.device.type != "cuda":
            raise PetaliteError("the fused engine needs a CUDA device")
        fused = Fused(read_network(checkpoint), materials.device, compute, scales="token")
        return Loaded(_graphed(fused, materials), torch.uint8, f"attention {fused.attention}", fused.scales)
    classifier = load(checkpoint, str(materials.device), compute=compute, engine="fused")
    return Loaded(classifier.forward, torch.uint8, f"attention {classifier.info.attention}", classifier.info.scales)


def _graphed(forward: Callable[[Tensor], Tensor], materials: Materials) -> Callable[[Tensor], Tensor]:
    if materials.device.type != "cuda":
        raise PetaliteError("CUDA graphs need a CUDA device")
    return Graphs(forward, (3, *materials.size), materials.device).forward


def _transformers(materials: Materials, dtype: torch.dtype, attention: str) -> Any:
    """The parent's weights in transformers' model; its query, key and value are layers of their own."""
    from transformers import ViTConfig, ViTForImageClassification

    shape: Any = materials.parent.skeleton()
    block = shape.blocks[0]
    config = ViTConfig(
        hidden_size=shape.embed_dim,
        num_hidden_layers=len(shape.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        image_size=materials.size[0],
        patch_size=shape.patch_embed.patch_size[0],
        layer_norm_eps=shape.norm.eps,
        num_labels=shape.num_classes,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config._attn_implementation = attention
    with torch.device("meta"):
        model = ViTForImageClassification(config)
    here = {current_name(name): name for name in model.state_dict()}  # they differ between versions
    named = {
        here[current_name(theirs)]: value
        for name, tensor in materials.parent.plain_tensors().items()
        for theirs, value in as_transformers(name, tensor).items()
    }
    model.load_state_dict(named, assign=True)
    return model.to(materials.device, dtype).eval().requires_grad_(False)


@cache
def _many_shapes() -> None:
    """Let torch.compile make code for every batch size and model of a run, and not give up after eight."""
    import torch._dynamo.config

    torch._dynamo.config.recompile_limit = 256


def _petalite(stored: str, compute: str, way: str = "") -> Candidate:
    words = {"": "", "token": ", a scale for each token", "calibrated": ", calibrated scales where they help"}
    return Candidate(
        "-".join(["petalite", compute, *([way] if way else []), *([] if stored == "fp32" else ["from", stored])]),
        f"Petalite: weights stored in {stored}, products in {compute}{words[way]}",
        partial(petalite_model, stored=stored, compute=compute, way=way),
        stored,
        compute,
    )


def _bitsandbytes(stored: str, about: str, attention: str, ceiling: str) -> Candidate:
    loader = partial(bitsandbytes_model, stored=stored, attention=attention)
    return Candidate(
        f"bitsandbytes-{stored}-{attention}", f"bitsandbytes {about}, {attention}", loader, stored, ceiling
    )


_HALF, _SINGLE = partial(transformers_eager, dtype=torch.float16), partial(transformers_eager, dtype=torch.float32)
CANDIDATES = (
    Candidate("transformers-fp32", "transformers FP32, eager, SDPA", _SINGLE, ceiling="fp32"),
    Candidate("transformers-fp16", "transformers FP16, eager, SDPA", _HALF),
    Candidate("transformers-fp16-flash", "transformers FP16, eager, FlashAttention", partial(_HALF, flash=True)),
    Candidate(
        "transformers-bf16-compiled",
        "transformers BF16, torch.compile reduce-overhead",
        partial(transformers_compiled, mode="reduce-overhead"),
        compiled_bf16=True,
    ),
    *(
        _bitsandbytes(stored, about, attention, ceiling)
        for stored, about, ceiling in (("nf4", "NF4 in FP16", "bf16"), ("int8", "LLM.int8", "int8"))
        for attention in ("sdpa", "fa2")
    ),
    Candidate("torchao-fp8", "torchao dynamic FP8, compiled", partial(torchao_model, kind="fp8"), ceiling="fp8"),
    Candidate("torchao-int8", "torchao dynamic INT8, compiled", partial(torchao_model, kind="int8"), ceiling="int8"),
    Candidate("timm-bf16", "timm BF16, eager", partial(timm_model, mode=None)),
    *(
        Candidate(
            f"timm-bf16-{mode}", f"timm BF16, torch.compile {mode}", partial(timm_model, mode=mode), compiled_bf16=True
        )
        for mode in ("reduce-overhead", "max-autotune")
    ),
    Candidate("lean-bf16-graph", "lean ViT BF16, blocks compiled, CUDA graph", lean_model, compiled_bf16=True),
    Candidate(
        "lean-bf16-graph-max-autotune",
        "the same, its kernels chosen by torch.compile's trials",
        partial(lean_model, mode="max-autotune-no-cudagraphs"),
        compiled_bf16=True,
    ),
    _petalite("fp32", "bf16"),
    *(_petalite("fp32", "fp8", way) for way in ("", "token", "calibrated")),
    *(_petalite(stored, "fp8") for stored in ("int4", "nf4", "int8-channel", "fp8")),
    *(_petalite("fp32", "int8", way) for way in ("", "calibrated")),
    *(_petalite(stored, "int8") for stored in ("int4", "int8-channel")),
)
#: Measured in every run, so that its ratios are of the same run.
ANCHORS = ("transformers-fp32", "lean-bf16-graph")
