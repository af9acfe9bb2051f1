"""eTT: one prefix for each class of an episode, made from its support, and an offset for each residual branch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import Layout, MissingPlace
from ..method import BadField, Method, register
from .dra import DRA

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel

# Temperatures of teacher and student, and the part of the centre that stays, as in the authors' code.
TEACHER, STUDENT, KEPT = 0.04, 0.1, 0.9


@register("ett", category="addition", family="prefix", paper="2301.02419", year=2023, venue="TMLR")
class ETT(Method):
    """K <- [p_k; K] and V <- [p_v; V] in all blocks, p = W_2 tanh(W_1 e + b_1) + b_2, e (n, D); offsets as DRA's; M f.

    One table e and one network serve all blocks: W_1 (hidden, D), W_2 (2 L D, hidden) for L blocks. `prepare` sets e_c
    to the prototype of class c: over its support images the mean of the tokens that enter block 0, weighed by the
    softmax over the patches of the class token's attention scores in the last block, which are a mean over the heads.
    M (D, D) starts as the identity. The loss gains distil * the mean over classes of CE(softmax((t - o) / 0.04),
    log softmax(s / 0.1)), s = Q e / |e|, t = Q e' / |e'| without gradient, e' the prototypes, Q (project, D) trained,
    and o the running mean of the teacher's softmax.

    Made for `vpeft fewshot` with the centroid head, where the support is one batch. Classes that have no image there
    keep a random row.
    """

    ways: int = Field(default=5, gt=0, le=10_000)
    """n, one prefix for each class"""
    hidden: int = Field(default=192, gt=0)
    """rows of W_1"""
    distil: float = Field(default=0.1, ge=0)
    """weight of the distance to the prototypes in the loss"""
    project: int = Field(default=64, gt=0)
    """rows of Q"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn.core")
        width, prefix = backbone.blocks[0].dim, backbone.blocks[0].prefix
        for block in backbone.blocks:
            if block.layout is not Layout.TOKENS or block.attn.core.per_window or block.dim != width or not prefix:
                raise MissingPlace(
                    f"{block.name} of {backbone.facts.architecture} is not one sequence with a class token, of one"
                    " width through all blocks, as eTT's prefixes need."
                )
        table = PrefixTable(self.ways, width, self.hidden, len(backbone.blocks), self.project)
        seen = FirstTokens(table)
        yield backbone.blocks[0].before(seen)
        for number, block in enumerate(backbone.blocks):
            core = block.attn.core
            last = number == len(backbone.blocks) - 1
            yield core.extend(TablePrefix(table, number, core.heads, prefix if last else None))
        yield from DRA().edits(backbone)
        yield backbone.outlet.after(SquareMap(backbone.facts.width))

    @torch.no_grad()
    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        table = _table(tuned)
        if bool(table.measured):
            return
        device = next(tuned.parameters()).device
        sums = torch.zeros(len(table.rows), table.rows.shape[1], device=device)
        counts = torch.zeros(len(table.rows), device=device)
        modes = {module: module.training for module in tuned.modules()}
        tuned.eval()
        table.looks = True
        try:
            for images, numbers in batches:
                numbers = torch.as_tensor(numbers, device=device).long()
                if (most := int(numbers.max())) >= len(counts):
                    raise BadField(
                        f"eTT has a prefix for each of {len(counts)} classes, and there is a class {most}. Write"
                        f" ett(ways={most + 1})."
                    )
                tuned.features(images.to(device))
                looked = table.looked().to(sums)
                numbers = numbers.repeat_interleave(len(looked) // len(numbers))  # frames have the class of their clip
                sums.index_add_(0, numbers, looked)
                counts.index_add_(0, numbers, torch.ones_like(numbers, dtype=counts.dtype))
        finally:
            table.looks = False
            for module, mode in modes.items():
                module.training = mode
        there = counts > 0
        table.rows[there] = (sums[there] / counts[there, None]).to(table.rows)
        table.prototypes.copy_(table.rows)
        table.measured.fill_(True)

    def penalty(self, tuned: TunedModel) -> Tensor | None:
        return self.distil * _table(tuned).distance() if self.distil else None


def _table(tuned: TunedModel) -> PrefixTable:
    return next(edit.layer.table for edit in tuned.adapter().edits if isinstance(edit.layer, FirstTokens))


class PrefixTable(nn.Module):
    """e (n, D) and the network that makes the prefixes of all blocks; while it `looks`, the model is the frozen one."""

    prototypes: Tensor
    centre: Tensor
    measured: Tensor

    def __init__(self, ways: int, width: int, hidden: int, blocks: int, project: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(ways, width))
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, 2 * blocks * width)
        self.projector = nn.Linear(width, project, bias=False)
        self.register_buffer("prototypes", self.rows.detach().clone())
        self.register_buffer("centre", torch.zeros(project))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))
        self.looks = False
        self._tokens: Tensor | None = None
        self._weights: Tensor | None = None

    def of_block(self, number: int) -> tuple[Tensor, Tensor]:
        """p_k and p_v of one block, (n, D) each."""
        width = self.rows.shape[1]
        part = slice(2 * number * width, 2 * (number + 1) * width)
        inner = torch.tanh(self.first(self.rows))
        keys, values = functional.linear(inner, self.second.weight[part], self.second.bias[part]).chunk(2, dim=1)
        return keys, values

    def see_tokens(self, patches: Tensor) -> None:
        """Note what enters block 0 without its class token, (B, N, D)."""
        self._tokens = patches

    def see_attention(self, scores: Tensor) -> None:
        """Note the class token's attention scores for the patches in the last block, (B, N)."""
        self._weights = scores.softmax(1)

    def looked(self) -> Tensor:
        """The weighted mean token of each image of the last pass, (B, D)."""
        assert self._tokens is not None and self._weights is not None, "no pass was looked at"
        found = (self._weights[..., None] * self._tokens).sum(1)
        self._tokens = self._weights = None
        return found

    def distance(self) -> Tensor:
        """The cross-entropy between the teacher's and the student's projections; the centre moves in training."""
        student = self.projector(functional.normalize(self.rows, dim=1)) / STUDENT
        with torch.no_grad():
            told = self.projector(functional.normalize(self.prototypes, dim=1))
            teacher = ((told - self.centre) / TEACHER).softmax(1)
        found: Tensor = -(teacher * student.log_softmax(1)).sum(1).mean()
        if self.training:
            self.centre.mul_(KEPT).add_(teacher.mean(0), alpha=1 - KEPT)
        return found


class FirstTokens(nn.Module):
    """What enters block 0; it passes unchanged."""

    def __init__(self, table: PrefixTable) -> None:
        super().__init__()
        self.table = table

    def forward(self, hidden: Tensor) -> Tensor:
        if self.table.looks:
            self.table.see_tokens(hidden)
        return hidden


class TablePrefix(nn.Module):
    """q, k, v -> the same with the table's keys and values of this block in front.

    Args:
        table: shared by all blocks.
        number: of the block.
        heads: of its attention.
        prefix: in the last block, how many tokens come before the patches; None in the others.
    """

    def __init__(self, table: PrefixTable, number: int, heads: int, prefix: int | None) -> None:
        super().__init__()
        self.table, self.number, self.heads, self.prefix = table, number, heads, prefix

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.table.looks:
            if self.prefix is not None:
                scores = (q[:, :, :1] @ k[:, :, self.prefix :].transpose(-2, -1)) / q.shape[-1] ** 0.5
                self.table.see_attention(scores[:, :, 0].mean(1))
                tokens = self.table._tokens
                assert tokens is not None
                self.table.see_tokens(tokens[:, self.prefix :])
            return q, k, v
        keys, values = (
            torch.reshape(rows, (len(rows), self.heads, -1)).transpose(0, 1).to(k.dtype).expand(k.shape[0], -1, -1, -1)
            for rows in self.table.of_block(self.number)
        )
        return q, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)


class SquareMap(nn.Module):
    """f -> M f, M (D, D) from the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width))

    def forward(self, feature: Tensor) -> Tensor:
        return functional.linear(feature, self.weight.to(feature.dtype))
