"""MiSS (formerly Bone): one small matrix, repeated over the shards of a weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.weight_change import WeightChange, WeightDelta
from ..method import register
from .lora import OnProjections


class Shards(WeightDelta):
    """dW repeats D^T (columns, R) along the inputs, and along the outputs where D has fewer columns than W has rows."""

    def __init__(self, width_in: int, width: int, rank: int, columns: int) -> None:
        super().__init__()
        self.width_in, self.width = width_in, width
        self.D = nn.Parameter(torch.zeros(rank, columns))

    def delta(self) -> Tensor:
        rank, columns = self.D.shape
        return self.D.T.repeat(self.width // columns, -(-self.width_in // rank))[:, : self.width_in]


class Blocks(WeightChange):
    """W -> W + W_ij B_i + B_i for each block of R x R, B (out / R, R, R): the form Bat, which depends on W."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.B = nn.Parameter(torch.zeros(width // rank, rank, rank))

    def changed(self, weight: Tensor) -> Tensor:
        rank = self.B.shape[-1]
        blocks = weight.reshape(len(weight) // rank, rank, -1, rank).permute(2, 0, 1, 3)  # (in, out, R, R)
        moved = blocks + blocks @ self.B + self.B
        return moved.permute(1, 2, 0, 3).reshape(weight.shape)


@register("miss", family="reparameter", paper="2409.15371", year=2024, venue="arXiv")
class MiSS(OnProjections):
    """The inputs of a weight are cut into shards of R, and all shards share one trained matrix D.

    y = W x + b + D^T sum_s x_s, x_s (R,) the shards of x, D (R, D_out): W' = W + [D^T, D^T, ...]. D starts at zero, so
    step 0 is the frozen model. R D_out numbers. It folds into W. If R does not divide D_in the last shard is shorter.

    form: "miss" as above; "mini", D has only `mini` columns, repeated along the outputs; "bat", the block-affine form
    of the first version of the paper, W_ij (I + B_i) + B_i with B_i (R, R) for each R rows. "mini" and "bat" take sizes
    that `mini` or R divide. Convolutions, as matrices (out, in k k), are ours.
    """

    rank: int = Field(default=64, gt=0)
    """R; a layer with fewer inputs has as many as those"""
    form: Literal["miss", "mini", "bat"] = "miss"
    """how D makes the update"""
    mini: int = Field(default=1, gt=0)
    """columns of D in the form mini"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for place in self.places(backbone):
            width, width_in = place.weight.flatten(1).shape
            rank = min(self.rank, width_in)
            divides = {"miss": True, "mini": width % self.mini == 0, "bat": width % rank == width_in % rank == 0}
            if not divides[self.form]:
                wanted = f"{rank} x {rank} blocks" if self.form == "bat" else f"parts of {self.mini} rows"
                raise MissingPlace(f"{place.name} is {width} x {width_in}, which does not split into {wanted}.")
            columns = self.mini if self.form == "mini" else width
            layer = Blocks(width, rank) if self.form == "bat" else Shards(width_in, width, rank, columns)
            yield place.reparametrize(layer)
