"""AttnScale: every entry of the attention maps has a learned factor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..errors import VpeftError
from ..method import Method, register
from .dra import DRA

Position = Literal["probs", "logits"]


@register("attnscale", category="partial", family="reparameter", paper="2304.01917", year=2024, venue="AAAI")
class AttnScale(Method):
    """A . softmax(S) v in place of softmax(S) v, S = q k^T / sqrt(d), A (N, N) from ones, together with `dra`.

    No code was published, and the paper's text could not be read in full when this was written. Unverified are the
    place of A, so that it is an option (on the softmax, without normalising again, or on S before bias and mask), and
    what is shared: one A for each head is taken to be AttnScale, one for each block AttnScale-Lite. The paper's "nine
    times fewer parameters than the best before" settles neither.

    N counts all tokens of the image size that the backbone was made for; another size is refused. In windows N is the
    window's area and all windows of a block share A; that is an extension of ours. Tokens and keys that other methods
    insert keep the factor one. A needs weight decay 0, as decay pulls it to 0 and not to 1.
    """

    position: Position = "probs"
    """A on the softmax ("probs") or on the scores ("logits")"""
    share: Literal["none", "heads", "layers+heads"] = "none"
    """one A for each head, for each block (Lite), or for the whole backbone, where all blocks have as many tokens"""
    with_dra: bool = True
    """also a vector for each residual branch, as the paper recommends"""
    start: float = 1.0
    """value that A starts from; 1 is the frozen model"""

    @property
    def starts_as_identity(self) -> bool:
        return self.start == 1.0

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn.core")
        shared: dict[int, Factors] = {}
        for block in backbone.blocks:
            core = block.attn.core
            if core.reduced:
                raise MissingPlace(
                    f"AttnScale scales a square attention map, but {core.name} has fewer keys than queries."
                )
            count = core.prefix + core.cells[0] * core.cells[1]
            factors = shared.get(count)
            if factors is None:
                heads = core.heads if self.share == "none" else 1
                factors = Factors(heads, count, self.start)
            if self.share == "layers+heads":
                shared[count] = factors
            layer = ScaledLogits(factors, core.prefix) if self.position == "logits" else ScaledMap(factors, core.prefix)
            yield core.extend(layer)
        if self.with_dra:
            yield from DRA().edits(backbone)


class Factors(nn.Module):
    """A (h or 1, N, N); one object may serve several blocks."""

    def __init__(self, heads: int, count: int, start: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.full((heads, count, count), start))


class ScaledMap(nn.Module):
    """P (B, h, N, N) -> A . P."""

    def __init__(self, factors: Factors, prefix: int) -> None:
        super().__init__()
        self.factors, self.prefix = factors, prefix

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q, k, v

    def weights(self, weights: Tensor) -> Tensor:
        return weights * self._fit(*weights.shape[-2:])

    def _fit(self, rows: int, columns: int) -> Tensor:
        """A for a map with inserted tokens (behind the prefix) and further keys (in front): ones there."""
        A = self.factors.A
        count = A.shape[-1]
        tokens, keys = rows - count, columns - rows
        if tokens == 0 and keys == 0:
            return A
        if tokens < 0:
            raise VpeftError(f"AttnScale was made for {count} tokens and meets {rows}; make it at this image size.")
        ours = torch.cat([torch.arange(self.prefix), torch.arange(self.prefix + tokens, rows)]).to(A.device)
        whole = A.new_ones(A.shape[0], rows, columns)
        whole[:, ours[:, None], ours + keys] = A
        return whole


class ScaledLogits(ScaledMap):
    """S (B, h, N, N) -> A . S."""

    weights = None  # type: ignore[assignment]

    def scores(self, scores: Tensor) -> Tensor:
        return scores * self._fit(*scores.shape[-2:])
