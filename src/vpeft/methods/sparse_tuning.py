"""Sparse-Tuning: adapters beside the MLPs, fewer tokens in three steps, and adapter outputs that are added again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Place
from ..backbones.points import Layout, MissingPlace
from ..layers.frozen_block import FrozenBlock
from ..method import Method, register


@register("sparse_tuning", category="addition", family="adapter", paper="2405.14700", year=2024, venue="arXiv")
class SparseTuning(Method):
    """x <- x + MLP(LN x) + o_i(x), o(x) = U_2 (D_3 [z; U_1 z] + a), a = ReLU(D_1 x), z = D_2 a; and tokens leave.

    In the blocks `locations`, behind the attention, the ceil(k N) of N tokens stay that the class token attends to
    most, a_j = mean over the heads, in the order of a; the others become one token, the sum of a_j x_j. Groups of
    blocks end before each location: behind a group's last block the sum of its o_i is added once more, in the first
    group with the embeddings, in the last without its last block's o. D_1 (R, D), D_2 (R/2, R), U_1 (R, R/2),
    D_3 (R, 3R/2), U_2 (D, R).

    All of this is the released code's; the paper's figure has other injections in part. Its annealing of k is not part
    of this. All maps start N(0, 0.02) (the code initialises its adapters, and then all linear maps once more), so step
    0 is not the frozen model; the second adding of the embeddings changes it anyway. The MLP of a block in which tokens
    leave still works on all of them, and the new token goes through it alone, which gives the same.
    """

    bottleneck: int = Field(default=64, gt=1)
    """R"""
    keep: float = Field(default=0.7, gt=0.0, le=1.0)
    """k"""
    locations: tuple[int, ...] | None = None
    """blocks in which tokens leave; None is after a quarter, a half and three quarters (3, 6, 9 of 12)"""
    fuse: bool = True
    """whether the others become one token; False drops them"""
    embeddings: bool = True
    """whether the first group adds the embeddings again"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        blocks, depth = backbone.blocks, len(backbone.blocks)
        if backbone.inputs.layout == "tokens" or not blocks[0].prefix:
            raise MissingPlace(
                f"Sparse-Tuning keeps the patches that the class token attends to, and {backbone.facts.architecture}"
                " has no class token."
            )
        if any(not block.offers("insert_tokens") or block.layout is not Layout.TOKENS for block in blocks):
            raise MissingPlace(f"The blocks of {backbone.facts.architecture} do not take any number of tokens.")
        quarters = dict.fromkeys(depth * i // 4 for i in (1, 2, 3))
        locations = self.locations or tuple(i for i in quarters if 0 < i < depth - 1)
        if not all(0 < i < depth for i in locations):
            raise MissingPlace(f"Tokens can leave in the blocks 1 to {depth - 1}, and `locations` has {locations}.")
        reads: list[Place | Edit] = [blocks[0].input] if self.embeddings else []
        owner: DenseAdapter | None = None
        for block in blocks:
            path, stream, adapter = FrozenBlock(block), block.mlp_branch.input, DenseAdapter(block.dim, self.bottleneck)
            leaving = block.index in locations
            if leaving:
                layer = AttendedTokens(path, block.prefix, self.keep, self.fuse)
                kept = stream.tap(layer, reads=(block.attn.q, block.attn.k))
                yield kept
                reads, owner = [kept], adapter
            made = stream.tap(adapter)
            yield made
            yield block.mlp_branch.parallel(nn.Identity(), reads=(made,))
            if leaving:
                yield block.after(Shortened(block.prefix, path, adapter), reads=(kept,))
            last = block.index == depth - 1
            reads += [] if last else [made]
            if (last or block.index + 1 in locations) and len(reads) > (owner is not None):
                yield block.after(AddedAgain(block.prefix, owner), reads=tuple(reads))


class DenseAdapter(nn.Module):
    """x (B, N, D) -> o (B, N, D)."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        half = bottleneck // 2
        self.down1, self.down2 = nn.Linear(width, bottleneck), nn.Linear(bottleneck, half)
        self.up1, self.down3 = nn.Linear(half, bottleneck), nn.Linear(half + bottleneck, bottleneck)
        self.up2 = nn.Linear(bottleneck, width)
        for linear in (self.down1, self.down2, self.up1, self.down3, self.up2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x).relu()
        z = self.down2(a)
        out: Tensor = self.up2(self.down3(torch.cat([z, self.up1(z)], dim=-1)) + a)
        return out


class AttendedTokens(nn.Module):
    """x (B, P + N, D) behind the attention, q and k -> the numbers (B, K) of the tokens that stay, and what the others
    become, (B, 1, D), or (B, 0, D) where it is nothing."""

    def __init__(self, path: FrozenBlock, prefix: int, keep: float, fuse: bool) -> None:
        super().__init__()
        self.path, self.prefix, self.keep, self.fuse = path, prefix, keep, fuse

    def forward(self, x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        rows = x[:, self.prefix :]
        query, keys = (self.path.attention.split(name, one) for name, one in (("q", q[:, :1]), ("k", k)))
        scores = (query @ keys.mT / query.shape[-1] ** 0.5).softmax(-1).mean(1)[:, 0, self.prefix :]
        count = math.ceil(self.keep * rows.shape[1])
        if count == rows.shape[1]:
            return torch.arange(count, device=x.device).expand(x.shape[0], -1), rows[:, :0]
        index = scores.topk(count, dim=1).indices
        others = scores.scatter(1, index, 0.0).to(x.dtype)
        return index, (others[:, None] @ rows if self.fuse else rows[:, :0])


class Shortened(nn.Module):
    """x (B, P + N, D) behind the block -> (B, P + K + 1, D): the prefix, the kept tokens and the new one."""

    def __init__(self, prefix: int, path: FrozenBlock, adapter: DenseAdapter) -> None:
        super().__init__()
        self.prefix, self.path, self.adapter = prefix, path, adapter

    def forward(self, x: Tensor, kept: tuple[Tensor, Tensor]) -> Tensor:
        index, new = kept
        return _joined(x, self.prefix, index, new + self.path.mlp_branch(new) + self.adapter(new))


class AddedAgain(nn.Module):
    """x (B, P + N, D) -> x plus the sum of what is read; where tokens left in the group, its first is shortened."""

    def __init__(self, prefix: int, adapter: DenseAdapter | None) -> None:
        super().__init__()
        self.prefix, self.adapter = prefix, adapter

    def forward(self, x: Tensor, *values: Any) -> Tensor:
        if self.adapter is not None:
            (index, new), first, *others = values
            values = (_joined(first, self.prefix, index, self.adapter(new)), *others)
        total: Tensor = sum(values[1:], values[0])
        return x + total[:, : x.shape[1]]  # of the last block perhaps the first tokens alone are computed


def _joined(x: Tensor, prefix: int, index: Tensor, new: Tensor) -> Tensor:
    """The prefix of x (B, P + N, D), its tokens at `index` (B, K), and new ones behind."""
    rows = x[:, prefix:].gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
    return torch.cat([x[:, :prefix], rows, new.to(x.dtype)], dim=1)
