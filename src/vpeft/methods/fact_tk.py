"""FacT-TK: all weight changes of the network as one Tucker decomposition."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.factored import Banked, Factors
from ..method import Method, register
from .fact_tt import TARGETS, Target, pieces


@register("fact_tk", category="partial", family="reparameter", paper="2212.03145", year=2023, venue="AAAI")
class FacTTK(Method):
    """The changes of all D x D matrices share U, V and a core C; each has one mixing vector.

    dW_j = s V S_j^T U with S_j = sum_a C[:, :, a] P[a, j]: y = W x + b + s V drop((U x) S_j), U (R, D), V (D, R),
    C (R, R, R), P (R, 12 L). The columns of P run through the blocks, and in each through q, k, v, proj, four parts of
    fc1, four of fc2. V starts at zero, so step 0 is the frozen model. It folds into the weights.

    As in the released code the parts of fc1 and fc2 are not transposed between two reshapes, so that they interleave;
    the capacity is the same, but other code gives other numbers from the same tensors. The factors belong to all
    blocks of one width: on a ViT to the whole network, elsewhere to each stage.
    """

    variants = ({"targets": ("fc1", "fc2")},)

    rank: int = Field(default=32, gt=0)
    """R; 16 or 32 in the paper"""
    scale: float = 1.0
    """s; the authors choose it for each task from 0.01, 0.1, 1, 10, 100"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """between core and V"""
    targets: tuple[Target, ...] = TARGETS
    """projections of each block"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        yield from bank(backbone, self.targets, self.rank, self.scale, self.dropout, kind="tucker")


def bank(
    backbone: Backbone, targets: tuple[Target, ...], rank: int, scale: float, dropout: float, kind: str
) -> Iterator[Edit]:
    """One bank of factors for each width, and each target's share of its columns."""
    for width in dict.fromkeys(block.dim for block in backbone.blocks):
        places = [block.projection(target) for block in backbone.blocks if block.dim == width for target in targets]
        split = [pieces(place, width) for place in places]
        factors = Factors(width, rank, sum(coming * going for coming, going in split), kind)
        start = 0
        for place, (coming, going) in zip(places, split, strict=True):
            yield place.parallel(Banked(factors, coming, going, scale, dropout, start, cp=kind == "cp"))
            start += coming * going
