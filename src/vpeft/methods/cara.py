"""CaRA: the weight changes of all layers as two tensors in canonical polyadic form, with a mode for the heads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..method import Method, register
from .fact_tt import TARGETS, Target, pieces

ATTENTION = ("q", "k", "v")


@register("cara", category="partial", family="reparameter", paper="ICML 2025", year=2025, venue="ICML")
class CaRA(Method):
    """The changes of all q, k and v are one tensor with modes layer, input, head and head channel; of the rest another.

    dW_j[(h, e), i] = sum_r l_r A1[j, r] A2[i, r] A3[h, r] A4[e, r] for j through q, k, v of each block;
    dW_j[o, i] = sum_r m_r P1[j, r] P2[o, r] P3[i, r] for j through proj, four D x D parts of fc1, four of fc2, for
    which P2 stands at the input. y = W x + b + s (drop(dW) x + c), c one bias for all proj, one for all fc1, one for
    all fc2; drop hits entries of dW. A2, P2 and c start at zero, so step 0 is the frozen model; A1 and P1
    Xavier-normal, A3, A4 and P3 orthogonal. It folds into the weights.

    Equations and starts are those of the authors' repository (BonnBytes/CaRA); the paper's text was not read in full.
    They choose s and the start of l and m for each task. Tensors belong to all blocks of one width and head number;
    that, and backbones other than ViT, is ours.
    """

    variants = ({"targets": ("fc1", "fc2")},)

    rank: int = Field(default=32, gt=0)
    """R"""
    scale: float = 1.0
    """s; 0.1 to 100 by task"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """on the entries of dW, in training"""
    mean: float = 1.0
    """mean of the first values of l and m; 0.9 to 1.5 by task"""
    std: float = Field(default=0.0, ge=0.0)
    """and their standard deviation; 0 to 0.1"""
    targets: tuple[Target, ...] = TARGETS
    """projections of each block"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        alike: dict[tuple[int, int], list[Block]] = {}
        attended = any(target in ATTENTION for target in self.targets)
        for block in backbone.blocks:
            alike.setdefault((block.dim, block.attn.core.heads if attended else 1), []).append(block)
        for (width, heads), blocks in alike.items():
            yield from self._of(blocks, width, heads)

    def _of(self, blocks: list[Block], width: int, heads: int) -> Iterator[Edit]:
        split = {(b.index, t): pieces(b.projection(t), width) for b in blocks for t in self.targets}
        counts = {t: sum(max(split[b.index, t]) for b in blocks) for t in self.targets}
        count = [sum(n for t, n in counts.items() if (t in ATTENTION) is inside) for inside in (True, False)]
        heads_too = Modes((count[0], width, heads, width // heads), self) if count[0] else None
        others = Modes((count[1], width, width), self) if count[1] else None
        shifts = {t: Shared(width * split[blocks[0].index, t][1]) for t in self.targets if t not in ATTENTION}
        row = [0, 0]
        for block in blocks:
            for target in self.targets:
                modes = heads_too if target in ATTENTION else others
                assert modes is not None
                parts, place = split[block.index, target], block.projection(target)
                at = int(modes is others)
                layer = CPSlices(modes, row[at], parts, shifts.get(target), self.scale, self.dropout)
                row[at] += max(parts)
                yield place.parallel(layer)


class Shared(nn.Module):
    """A bias that all layers of one kind add."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width))


class Modes(nn.Module):
    """The factors (n, R) of one tensor, one for each mode, and the weights (R,) of its R parts; they are shared."""

    def __init__(self, sizes: tuple[int, ...], method: CaRA) -> None:
        super().__init__()
        self.factors = nn.ParameterList(torch.zeros(size, method.rank) for size in sizes)
        nn.init.xavier_normal_(self.factors[0])
        for factor in list(self.factors)[2:]:
            nn.init.orthogonal_(factor)
        self.weight = nn.Parameter(torch.empty(method.rank))
        nn.init.normal_(self.weight, mean=method.mean, std=method.std)

    def rows(self, start: int, count: int) -> Tensor:
        """Rows of the first mode: (count, out, in) with four modes, (count, second, third) with three."""
        layers, second, *more = self.factors
        layers = layers[start : start + count] * self.weight
        if len(more) == 2:
            return torch.einsum("jr,ir,hr,er->jhei", layers, second, *more).flatten(1, 2)
        return torch.einsum("jr,or,ir->joi", layers, second, *more)


class CPSlices(nn.Module):
    """x -> s (drop(dW) x + c), for a projection of `parts` = (n in, n out) pieces of D, one of them 1."""

    def __init__(
        self, modes: Modes, start: int, parts: tuple[int, int], shift: Shared | None, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.modes, self.start, self.parts, self.scale = modes, start, parts, scale
        self.shift, self.dropout = shift, nn.Dropout(dropout)

    def _delta(self) -> Tensor:
        """dW (n out D, n in D)."""
        found = self.modes.rows(self.start, max(self.parts)).flatten(0, 1)
        return found.T if self.parts[0] > 1 else found

    def forward(self, x: Tensor) -> Tensor:
        delta = self.dropout(self._delta())
        shift = None if self.shift is None else self.shift.shift.to(x.dtype)
        return F.linear(x, delta.to(x.dtype), shift) * self.scale

    def weight_delta(self) -> tuple[Tensor, Tensor | None]:
        """s dW and s c."""
        return self.scale * self._delta(), None if self.shift is None else self.scale * self.shift.shift
