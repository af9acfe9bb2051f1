"""E3VA: adapters on a highway of their own beside the frozen blocks, for hierarchical backbones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.blocks import Stage
from ..backbones.edits import Edit
from ..backbones.places import Place
from ..backbones.points import Layout
from ..layers.bottleneck import ACTIVATIONS, Activation
from ..method import Method, register


@register("e3va", category="addition", family="side", paper="2306.09729", year=2024, venue="ACM MM")
class E3VA(Method):
    """Two adapters for each block read its attention and MLP branch and add to a side state that alone has gradients.

    y <- y + A1(attn branch) + A2(mlp branch), both read before the residual add, y (B, H, W, D) zero at first. Between
    stages y passes the backbone's own frozen downsampling. The trunk's last output plus y enters the final norm, which
    trains. A(a) = P_u Q_u f(P_d Q_d a + b_d) + b_u: both projections are low-rank products, Q_d (R, D), P_d (m, R),
    Q_u (R, m), P_u (D, R), m = D / 2. P_u and b_u start at zero: step 0 is the frozen model.

    No code is public; R = 16 and m = D / 2 with biases are the sizes that give both published counts (Swin-B 1.195 M,
    Swin-L 1.793 M, with the norms of all four outputs of dense prediction; classification has one of them).
    Frozen downsampling M has a norm, which turns y = 0 into a constant and is steep there, so by default y becomes
    M(x + y) - M(x) with x the stage's frozen output; `merging="highway"` is M(y).
    """

    rank: int = Field(default=16, gt=0)
    """R, inner rank of both projections"""
    reduction: int = Field(default=2, gt=0)
    """D / m"""
    activation: Activation = "gelu"
    """f"""
    merging: Literal["difference", "highway"] = "difference"
    """how y passes the frozen downsampling"""
    train_norm: bool = True
    """train the final norm"""

    @property
    def starts_as_identity(self) -> bool:
        return self.merging == "difference"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        reads: list[Place] = []
        counts = []
        for stage, following in zip(backbone.stages, [*backbone.stages[1:], None], strict=True):
            inside = len(reads)
            for block in stage.blocks:
                reads += [block.parts[name] for name in ("attn_branch", "mlp_branch") if block.has(name)]
            counts.append(len(reads) - inside)
            if following is not None and self.merging == "difference":
                reads.append(stage)
        yield backbone.at_end(Highway(self, backbone.stages, counts), reads=tuple(reads))
        if self.train_norm and backbone.has_norm:
            yield backbone.norm.unfreeze()


class DualLowRank(nn.Module):
    """a (..., D) -> P_u Q_u f(P_d Q_d a + b_d) + b_u."""

    def __init__(self, width: int, hidden: int, rank: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.down = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, hidden))
        self.inner, self.up = nn.Linear(hidden, rank, bias=False), nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(self.inner(ACTIVATIONS[self.activation](self.down(x))))
        return out


class Highway(nn.Module):
    """(h, branch outputs of stage 0, [output of stage 0], branch outputs of stage 1, ...) -> h + y."""

    def __init__(self, method: E3VA, stages: list[Stage], counts: list[int]) -> None:
        super().__init__()
        self.difference = method.merging == "difference"
        self.stages = nn.ModuleList(
            nn.ModuleList(
                DualLowRank(stage.width, max(1, stage.width // method.reduction), method.rank, method.activation)
                for _ in range(count)
            )
            for stage, count in zip(stages, counts, strict=True)
        )
        # the backbone's own, in a tuple so that they are no part of the adapter
        self.merges = tuple((stage.downsample, stage.layout is Layout.CHANNELS_FIRST) for stage in stages)

    def forward(self, h: Tensor, *values: Tensor) -> Tensor:
        rest, y = iter(values), None
        before: Tensor | None = None
        for adapters, (merge, turn) in zip(self.stages, self.merges, strict=True):
            if y is not None and merge is not None:
                y = (
                    _apply(merge, y, turn)
                    if before is None
                    else _apply(merge, before + y, turn) - _apply(merge, before, turn)
                )
            assert isinstance(adapters, nn.ModuleList)
            for adapter in adapters:
                change = adapter(next(rest))
                y = change if y is None else y + change.reshape(y.shape)
            before = next(rest, None) if self.difference else None
        return h if y is None else h + y.reshape(h.shape)


def _apply(merge: nn.Module, y: Tensor, turn: bool) -> Tensor:
    """The frozen downsampling on (B, H, W, D), whichever layout it takes."""
    out: Tensor = merge(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if turn else merge(y)
    return out
