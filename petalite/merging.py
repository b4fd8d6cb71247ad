"""Token merging: in each block the tokens most alike become one, so that the blocks after it have less to do.

    use_merging(model, (0, 0, 24, 0, 0, 24, 0, 0, 24, 0, 0, 0))    # tokens merged away in each of twelve blocks
    logits = model(pixels)

Method: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv:2210.09461. Between attention and MLP, the
patch tokens are dealt out in turn to two sides. Each of the first side finds the one of the second whose key is most
like its own (cosine of the keys' mean over heads); the most alike pairs become the mean of all patches they stand for.
A token that stands for s patches is attended to as s equal ones would be: log s is added to its scores. Class and
register tokens are never merged.

How many patches each token stands for travels with the tokens: from the first block that merges, a block takes and
returns `Tokens` instead of a tensor, and the final norm takes `Tokens` and returns a tensor. Nothing is kept between
calls, so a pass can stop at any block and several can go on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from petalite.errors import PetaliteError
from petalite.plan import Plan

_POOLINGS = ("token", "avg")


@dataclass(frozen=True)
class Tokens:
    """Token values `x` (B, N, C) and how many tokens of the image each stands for, `size` (B, N), float32."""

    x: Tensor
    size: Tensor


class MergingBlock(nn.Module):
    """timm's `Block` that merges away `count` tokens; the same layers under the same names.

    Its attention is an `attention.Attention`. The first `protected` tokens are left alone.
    """

    def __init__(self, block: Any, count: int, protected: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1, self.drop_path1 = block.norm1, block.attn, block.ls1, block.drop_path1
        self.norm2, self.mlp, self.ls2, self.drop_path2 = block.norm2, block.mlp, block.ls2, block.drop_path2
        self.count, self.protected = count, protected

    def forward(self, tokens: Tensor | Tokens) -> Tokens:
        """(B, N, C), as a tensor where nothing was merged before -> (B, N - count, C)."""
        x, size = (tokens.x, tokens.size) if isinstance(tokens, Tokens) else (tokens, None)
        normed = self.norm1(x)
        query, key, value = self.attn.heads(normed)
        bias = None if size is None else size.log()[:, None, None]
        attended = self.attn.output(self.attn.attend(query, key, value, bias), normed)
        x = x + self.drop_path1(self.ls1(attended))
        size = x.new_ones(x.shape[:2], dtype=torch.float32) if size is None else size
        if self.count:
            x, size = merge_tokens(x, size, key, self.count, self.protected)
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return Tokens(x, size)


class MergedNorm(nn.Module):
    """The final norm of a model that merges: `Tokens` to the plain tensor that timm pools.

    Where timm pools by the mean, the patch tokens are already averaged here, each with its size as its weight, and
    stand as one token after the `prefix` that the mean leaves out: the mean of one token is that token.
    """

    def __init__(self, norm: nn.Module, pooling: str, prefix: int) -> None:
        super().__init__()
        self.norm, self.pooling, self.prefix = norm, pooling, prefix

    def forward(self, tokens: Tokens) -> Tensor:
        """(B, N, C) -> (B, N, C), or (B, prefix + 1, C) for a model that pools by the mean."""
        x: Tensor = self.norm(tokens.x)
        if self.pooling != "avg":
            return x
        size = tokens.size[:, None, self.prefix :]  # B, 1, patches
        mean = ((size / size.sum(-1, keepdim=True)) @ x[:, self.prefix :].float()).to(x.dtype)
        return torch.cat((x[:, : self.prefix], mean), dim=1)


def use_merging(model: Any, merge: Sequence[int]) -> int:
    """Make a timm ViT merge away `merge[i]` tokens in block `i`; call it after `use_attention`.

    A block merges at most half of the patch tokens that reach it. Blocks before the first that merges stay as they are.
    Returns how many tokens are merged away in all. Raises PetaliteError for what `merge_problems` names.
    """
    if problems := _problems(merge, len(model.blocks), model.global_pool, model.patch_embed.num_patches):
        raise PetaliteError(problems[0])
    counts = merged_counts(merge, model.patch_embed.num_patches)
    first = next((index for index, count in enumerate(counts) if count), len(counts))
    for index in range(first, len(counts)):
        model.blocks[index] = MergingBlock(model.blocks[index], counts[index], model.num_prefix_tokens)
    if any(counts):
        prefix = 0 if model.pool_include_prefix else model.num_prefix_tokens
        model.norm = MergedNorm(model.norm, model.global_pool, prefix)
    return sum(counts)


def merge_tokens(x: Tensor, size: Tensor, key: Tensor, count: int, protected: int) -> tuple[Tensor, Tensor]:
    """Merge `count` tokens away: x (B, N, C), size (B, N) -> (B, N - count, C), (B, N - count).

    key: (B, heads, N, D), by which alike is judged. count: from 1 to half of the tokens after the first `protected`.
    In what is returned, those come first, then what is left of the first side, then the second side.
    """
    B, N, C = x.shape
    order, partner = match(key[:, :, protected:])
    firsts = order.shape[1]
    seconds = N - protected - firsts
    rows = (torch.arange(0, B * N, N, device=x.device)[:, None] + protected + 2 * order).flatten()
    first = x.reshape(B * N, C).index_select(0, rows).view(B, firsts, C)  # the most alike in front
    first_size = size.reshape(B * N).index_select(0, rows).view(B, firsts)
    second, second_size = x[:, protected + 1 :: 2], size[:, protected + 1 :: 2]

    # Weighted means by a small matrix product: scatter_add adds in a new order each time on CUDA, and takes longer
    into = partner.gather(1, order[:, :count])[:, None] == torch.arange(seconds, device=x.device)[:, None]
    share = torch.where(into, first_size[:, None, :count], 0.0)  # B, seconds, count: patches that move
    merged_size = second_size + share.sum(-1)
    kept = (second_size / merged_size)[..., None].to(x.dtype)
    merged = torch.baddbmm(second * kept, (share / merged_size[..., None]).to(x.dtype), first[:, :count])
    return (
        torch.cat((x[:, :protected], first[:, count:], merged), dim=1),
        torch.cat((size[:, :protected], first_size[:, count:], merged_size), dim=1),
    )


def match(key: Tensor) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching: key (B, heads, N, D) -> order and partner, (B, (N + 1) // 2) each.

    The tokens at even places are the first side, those at odd places the second. `partner[i]` is the token of the
    second side most like the i-th of the first; `order` lists the first side from the most alike pair to the least.
    Of equals the earlier one counts. A key of zeros is like nothing.
    """
    mean = key.mean(1, dtype=torch.float32)  # in 8 bits of a bfloat16 many pairs would be equally alike
    unit = mean / torch.linalg.vector_norm(mean, dim=-1, keepdim=True).clamp_min(1e-6)
    best, partner = (unit[:, ::2] @ unit[:, 1::2].mT).max(-1)
    return best.argsort(dim=-1, descending=True, stable=True), partner


def merged_counts(merge: Sequence[int], patches: int) -> tuple[int, ...]:
    """How many tokens each block merges away of an image of `patches`: as asked, but at most half of what reaches it."""
    counts = []
    for asked in merge:
        counts.append(min(asked, patches // 2))
        patches -= counts[-1]
    return tuple(counts)


def merge_problems(plan: Plan, depth: int, pooling: str, patches: int) -> list[str]:
    """Why a model cannot merge tokens as `plan` says; empty when it can. pooling: timm's `global_pool`."""
    return [f"plan.json: {problem}" for problem in _problems(plan.merge, depth, pooling, patches)]


def parse_merge(text: str, depth: int) -> tuple[int, ...]:
    """`"8"`, tokens merged away in every block, or `"0,0,24,…"`, a number for each of `depth` blocks; () for none.

    Raises PetaliteError for anything else.
    """
    try:
        merge = tuple(int(part) for part in text.split(","))
    except ValueError:
        merge = (-1,)
    if min(merge) < 0:
        raise PetaliteError(
            f"merge must be a whole number of tokens, or one for each of the {depth} blocks, got '{text}'"
        )
    merge = merge * depth if len(merge) == 1 else merge
    if len(merge) != depth:
        raise PetaliteError(_wrong_length(merge, depth))
    return merge if any(merge) else ()


def _problems(merge: Sequence[int], depth: int, pooling: str, patches: int) -> list[str]:
    if not merge:
        return []
    if len(merge) != depth:
        return [_wrong_length(merge, depth)]
    problems = []
    if any(merge) and pooling not in _POOLINGS:
        problems.append(f"tokens cannot be merged in a model that pools by '{pooling}', only by token or avg")
    left = patches
    for index, (asked, count) in enumerate(zip(merge, merged_counts(merge, left), strict=True)):
        if asked and asked >= left:
            problems.append(f"block {index} cannot merge away {asked} of its {left} patch tokens: one has to be left")
        left -= count
    return problems


def _wrong_length(merge: Sequence[int], depth: int) -> str:
    return f"merge has {len(merge)} numbers for {depth} blocks; give one for each, or a single one for all"
