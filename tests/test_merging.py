"""Token merging against float64 loops, what it must preserve, and everything that it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from petalite import stages
from petalite.attention import BACKENDS, with_bias_channels
from petalite.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from petalite.engine import load
from petalite.errors import PetaliteError
from petalite.merging import (
    MergingBlock,
    Tokens,
    match,
    merge_tokens,
    merged_counts,
    parse_merge,
)
from tests.tiny import tiny_checkpoint, tiny_pixels

CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "class token": {},
    "layer scale, drop path, normed queries": {"init_values": 0.5, "drop_path_rate": 0.3, "qk_norm": True},
    "registers": {"reg_tokens": 3},
    "mean, class token": {"global_pool": "avg"},
    "mean, nothing else": {"global_pool": "avg", "class_token": False, "fc_norm": False},
}


def looped_merge(x: Tensor, size: Tensor, key: Tensor, count: int, protected: int) -> tuple[Tensor, Tensor]:
    """One image, (N, C), (N,) and (heads, N, D), as the paper has it."""
    mean = key.double().mean(0)
    first, second = range(protected, len(x), 2), range(protected + 1, len(x), 2)
    pairs = []
    for here in first:
        cosines = [torch.cosine_similarity(mean[here], mean[there], dim=0, eps=1e-6).item() for there in second]
        best = max(cosines)
        pairs.append((-best, here, second[cosines.index(best)]))
    gone = {here: there for _, here, there in sorted(pairs)[:count]}
    left = [here for _, here, _ in sorted(pairs)[count:]]
    rows, sizes = [], []
    for place in [*range(protected), *left, *second]:
        group = [place, *(here for here, there in gone.items() if there == place)]
        total = sum(size[member].item() for member in group)
        rows.append(sum((x[member].double() * size[member].item() for member in group), torch.zeros(())) / total)
        sizes.append(total)
    return torch.stack(rows), torch.tensor(sizes)


def looped_logits(checkpoint: Checkpoint, merge: tuple[int, ...], pixels: Tensor) -> Tensor:
    """Logits (B, classes) in float64, an image at a time; a token of size s is attended to as s equal tokens."""
    model: Any = checkpoint.skeleton()
    model.load_state_dict(checkpoint.plain_tensors(), assign=True)
    model = model.double().eval()
    logits = []
    for image in stages.embed(model, pixels.double()):
        x, size = image, torch.ones(len(image))
        for block, count in zip(model.blocks, merge, strict=True):
            attn, normed = block.attn, block.norm1(x)
            heads = attn.qkv(normed).reshape(len(x), 3, attn.num_heads, attn.head_dim).permute(1, 2, 0, 3)
            query, key, value = attn.q_norm(heads[0]), attn.k_norm(heads[1]), heads[2]
            repeats = size.int()
            scores = query @ key.repeat_interleave(repeats, dim=1).mT / attn.head_dim**0.5
            attended = scores.softmax(-1) @ value.repeat_interleave(repeats, dim=1)
            x = x + block.ls1(attn.proj(attended.transpose(0, 1).reshape(len(x), -1)))
            if count:
                x, size = looped_merge(x, size, key, count, model.num_prefix_tokens)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        x, patches = model.norm(x), slice(model.num_prefix_tokens, None)
        pooled = (
            x[0] if model.global_pool == "token" else (size[patches, None] * x[patches]).sum(0) / size[patches].sum()
        )
        logits.append(model.head(model.fc_norm(pooled)))
    return torch.stack(logits)


def merging(checkpoint: Checkpoint, merge: tuple[int, ...]) -> Checkpoint:
    return replace(checkpoint, plan=replace(checkpoint.plan, merge=merge))


def some_tokens(B: int, N: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(B * N)
    size = torch.randint(1, 9, (B, N), generator=generator).float()
    x, key = torch.randn(B, N, 24, generator=generator), torch.randn(B, 3, N, 8, generator=generator)
    return x.to(dtype), size, key.to(dtype)


@pytest.mark.parametrize(
    ("N", "protected", "count"), [(17, 1, 5), (18, 1, 8), (18, 2, 8), (9, 0, 4), (3, 1, 1), (7, 5, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tokens_merge_as_the_loops_merge_them(N: int, protected: int, count: int, dtype: torch.dtype) -> None:
    x, size, key = some_tokens(3, N, dtype)
    merged, sizes = merge_tokens(x, size, key, count, protected)
    assert merged.dtype == dtype and merged.shape == (3, N - count, 24)
    for image in range(3):
        expected, expected_sizes = looped_merge(x[image], size[image], key[image], count, protected)
        assert torch.equal(sizes[image], expected_sizes.float())
        bound = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
        torch.testing.assert_close(merged[image].double(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("protected", [0, 1, 5])
def test_merging_moves_no_weight(protected: int) -> None:
    x, size, key = some_tokens(4, 30)
    merged, sizes = merge_tokens(x, size, key, (30 - protected) // 2, protected)
    torch.testing.assert_close((merged * sizes[..., None]).sum(1), (x * size[..., None]).sum(1), rtol=1e-5, atol=1e-4)
    assert torch.equal(sizes.sum(1), size.sum(1))
    assert torch.equal(merged[:, :protected], x[:, :protected])
    assert torch.equal(sizes[:, :protected], size[:, :protected])


def test_equal_tokens_and_keys_of_zeros_merge_like_any() -> None:
    x, size = torch.full((2, 13, 4), 0.3), torch.ones(2, 13)
    for key in (torch.zeros(2, 3, 13, 8), torch.ones(2, 3, 13, 8)):
        merged, sizes = merge_tokens(x, size, key, 6, 1)
        torch.testing.assert_close(merged, torch.full((2, 7, 4), 0.3))
        assert sizes[0].tolist() == [1, 7, 1, 1, 1, 1, 1]  # of equals the first: the whole first side into one
        assert torch.equal(match(key[:, :, 1:])[0][0], torch.arange(6))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_backend_attends_to_a_token_as_to_what_it_stands_for(name: str, dtype: torch.dtype) -> None:
    backend = BACKENDS[name]
    if reason := backend.unavailable(CPU, dtype):
        pytest.skip(reason)
    query, key, value, size, expected = proportional(dtype, 37)
    bias = size.log()[:, None, None]
    error = (backend.attend(query, key, value, bias).double() - expected).norm() / expected.norm()
    # log 150 is 5.01, and in 8 bits the numbers there lie 0.03 apart; the formula as written rounds every score like that
    assert error < {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("D", [32, 64, 63, 80])
def test_a_bias_in_channels_of_the_keys_is_exact_to_the_precision_of_the_rest(dtype: torch.dtype, D: int) -> None:
    """Kernels without a bias sum products of 16 bits in 32; so does this, on the widened heads as they are rounded."""
    query, key, value, size, expected = proportional(dtype, D)
    query, key, value = with_bias_channels(query, key, value, size.log()[:, None, None])
    assert query.shape[-1] % 8 == 0 and query.dtype == key.dtype == value.dtype == dtype
    found = BACKENDS["math"].attend(query.double(), key.double(), value.double())[..., :D]
    assert (found - expected).norm() / expected.norm() < (1e-6 if dtype == torch.float32 else 3e-3)
    constant, rounded, rest = query[0, 0, 0, D].double(), key[:, :1, :, D].double(), key[:, :1, :, D + 1].double()
    bias = constant * (rounded + rest) * query.shape[-1] ** -0.5
    torch.testing.assert_close(bias[:, 0], size.double().log(), rtol=1e-4, atol=1e-6)


def proportional(dtype: torch.dtype, D: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(D)
    query, key, value = (torch.randn(2, 3, 21, D, generator=generator).to(dtype) for _ in range(3))
    size = torch.randint(1, 150, (2, 21), generator=generator).float()
    scores = query.double() @ key.double().mT / D**0.5 + size.double().log()[:, None, None]
    repeated = [torch.repeat_interleave(key[1].double(), size[1].int(), 1), size[1].int()]
    as_tokens = (query[1].double() @ repeated[0].mT / D**0.5).softmax(-1)
    expected = scores.softmax(-1) @ value.double()
    assert torch.allclose(as_tokens @ torch.repeat_interleave(value[1].double(), size[1].int(), 1), expected[1])
    return query, key, value, size, expected


@pytest.mark.parametrize(
    ("name", "merge"), [*((name, (3, 4)) for name in MODELS), ("class token", (0, 8)), ("class token", (8, 0))]
)
def test_a_model_merges_as_the_loops_do(tmp_path: Path, name: str, merge: tuple[int, int]) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny", **MODELS[name])
    classifier = load(merging(checkpoint, merge), "cpu", engine="module")
    assert classifier.info.merged_tokens == sum(merge)
    pixels = classifier.preprocess.normalize(tiny_pixels())
    expected = looped_logits(checkpoint, merge, pixels)
    torch.testing.assert_close(classifier.logits(pixels).double(), expected, rtol=1e-4, atol=1e-4)
    # only the class token is read, and what the last block merges reaches none of the others any more
    unseen = name == "class token" and merge[0] == 0
    assert (
        torch.allclose(load(checkpoint, "cpu", engine="module").logits(pixels).double(), expected, rtol=1e-3, atol=1e-3)
        == unseen
    )


@pytest.mark.parametrize(
    ("attention", "compute", "bound"), [("math", "fp32", 1e-4), ("fa2", "fp32", 1e-4), ("fa2", "bf16", 0.1)]
)
def test_backends_and_precisions_agree(tmp_path: Path, attention: str, compute: str, bound: float) -> None:
    checkpoint = merging(tiny_checkpoint(tmp_path / "tiny"), (4, 3))
    expected = load(checkpoint, "cpu", "sdpa", "fp32").logits(tiny_pixels())
    logits = load(checkpoint, "cpu", attention, compute, engine="module").logits(tiny_pixels())
    assert (logits - expected).norm() / expected.norm() < bound


def test_a_plan_that_merges_travels_in_its_checkpoint(tmp_path: Path) -> None:
    parent = tiny_checkpoint(tmp_path / "parent")
    write_checkpoint(tmp_path / "merged", parent.config, parent.tensors, replace(parent.plan, merge=(2, 5)))
    classifier = load(tmp_path / "merged", "cpu")
    assert classifier.info.as_dict()["merged_tokens"] == 7
    assert torch.equal(classifier.logits(tiny_pixels()), load(merging(parent, (2, 5)), "cpu").logits(tiny_pixels()))


def test_without_merging_nothing_changes(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    plain, zeros, late = (load(merging(checkpoint, merge), "cpu", engine="module") for merge in ((), (0, 0), (0, 3)))
    assert plain.info.merged_tokens == zeros.info.merged_tokens == 0
    assert torch.equal(plain.logits(tiny_pixels()), zeros.logits(tiny_pixels()))
    kinds = [[type(block) for block in variant.model.blocks] for variant in (plain, zeros, late)]
    assert MergingBlock not in kinds[0] + kinds[1]
    assert kinds[2] == [kinds[0][0], MergingBlock]
    assert [name for name, _ in plain.model.blocks.named_parameters()] == [
        name for name, _ in late.model.blocks.named_parameters()
    ]


def test_an_image_does_not_depend_on_its_batch_or_on_earlier_calls(tmp_path: Path) -> None:
    classifier = load(merging(tiny_checkpoint(tmp_path / "tiny"), (5, 4)), "cpu", engine="module")
    pixels = tiny_pixels(7)
    together = classifier.logits(pixels)
    alone = torch.cat([classifier.logits(pixels[index : index + 1]) for index in range(7)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert torch.equal(classifier.logits(pixels), together)


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_a_pass_can_stop_anywhere_and_go_on_twice(tmp_path: Path, pooling: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny", depth=4, global_pool=pooling)
    classifier = load(merging(checkpoint, (0, 4, 0, 3)), "cpu", engine="module")
    pixels = classifier.preprocess.normalize(tiny_pixels())
    expected = classifier.logits(pixels)
    with torch.inference_mode():
        for stop in range(5):
            tokens: Any = stages.run_blocks(classifier.model, stages.embed(classifier.model, pixels), 0, stop)
            assert isinstance(tokens, Tokens) == (stop > 1)
            if isinstance(tokens, Tokens):
                assert torch.equal(tokens.size.sum(1), torch.full((4,), 17.0))
            for _ in range(2):
                rest = stages.run_blocks(classifier.model, tokens, stop)
                assert torch.equal(stages.finish(classifier.model, rest), expected)


def test_it_is_one_graph_without_shapes_that_depend_on_the_image(tmp_path: Path) -> None:
    classifier = load(merging(tiny_checkpoint(tmp_path / "tiny"), (3, 4)), "cpu", engine="module")
    pixels = classifier.preprocess.normalize(tiny_pixels())
    compiled = torch.compile(classifier.model, backend="eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(pixels), classifier.model(pixels), rtol=1e-5, atol=1e-6)


def test_a_block_merges_at_most_half_of_what_reaches_it() -> None:
    assert merged_counts((16,) * 12, 196) == (*(16,) * 11, 10)  # 20 patches reach the last block
    assert merged_counts((4, 4, 4), 5) == (2, 1, 1)
    assert merged_counts((1, 1), 1) == (0, 0)
    assert merged_counts((), 196) == ()


@pytest.mark.parametrize(
    ("merge", "arguments", "problem"),
    [
        ((), {}, None),
        ((0, 0), {"global_pool": "max"}, None),
        ((15, 7), {}, None),  # clamped to 8 and 4
        ((8, 8), {}, "block 1 cannot merge away 8 of its 8 patch tokens: one has to be left"),
        ((16, 0), {}, "block 0 cannot merge away 16 of its 16 patch tokens: one has to be left"),
        ((1, 2, 3), {}, "merge has 3 numbers for 2 blocks; give one for each, or a single one for all"),
        (
            (1, 1),
            {"global_pool": "max"},
            "tokens cannot be merged in a model that pools by 'max', only by token or avg",
        ),
    ],
)
def test_what_cannot_be_merged_is_named(
    tmp_path: Path, merge: tuple[int, ...], arguments: dict[str, Any], problem: str | None
) -> None:
    checkpoint = merging(tiny_checkpoint(tmp_path / "tiny", **arguments), merge)
    assert checkpoint.outline.merge_problems(checkpoint.plan) == ([f"plan.json: {problem}"] if problem else [])
    if problem is None:
        assert load(checkpoint, "cpu").logits(tiny_pixels()).isfinite().all()
    else:
        with pytest.raises(PetaliteError, match=problem):
            load(checkpoint, "cpu")


def test_merge_is_a_number_or_one_for_each_block() -> None:
    assert parse_merge("8", 3) == (8, 8, 8)
    assert parse_merge("0, 24,0", 3) == (0, 24, 0)
    assert parse_merge("0", 3) == parse_merge("0,0,0", 3) == ()
    for text in ("", "eight", "1.5", "-1", "4,-4,4", "4,,4"):
        with pytest.raises(PetaliteError, match=r"whole number of tokens, or one for each of the 3 blocks, got '.*'$"):
            parse_merge(text, 3)
    with pytest.raises(PetaliteError, match="merge has 2 numbers for 3 blocks"):
        parse_merge("4,4", 3)


@pytest.mark.real
def test_the_real_model_keeps_its_answers(shared: Path) -> None:
    checkpoint = read_checkpoint(shared / "models" / "vit_tiny_patch16_224")
    photos = sorted((shared / "data" / "flowers102" / "test").glob("*/*"))[:: 819 // 16][:16]
    classifier, merged = (load(merging(checkpoint, merge), "cpu", engine="module") for merge in ((), (8,) * 12))
    pixels = torch.stack([pixels_of(classifier, photo) for photo in photos])
    expected, found = classifier.logits(pixels), merged.logits(pixels)
    assert merged.info.merged_tokens == 96
    assert (expected.argmax(1) == found.argmax(1)).float().mean() >= 0.75


def pixels_of(classifier: Any, photo: Path) -> Tensor:
    from petalite.data.images import decode

    pixels: Tensor = classifier.preprocess(decode(photo))
    return pixels
