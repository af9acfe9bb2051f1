"""SMILE: sparse mixtures of low-rank experts beside every linear map, chosen for each token by its direction."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.linear_places import linear_places
from ..method import BadField, Method, register


@register("smile", category="multi-task", family="reparameter", paper="2408.10174", year=2024, venue="arXiv")
class SMILE(Method):
    """y = W x + b + sum_n w_n (B_n A_n x + c_n), with w from the norms l_n = |G_n x| of each token.

    w = softmax(l), of which the `top_k` largest are kept and made to sum to 1. A_n (R, D_in), B_n (D_out, R), c_n
    (D_out,), G_n (R_g, D_in). Of fine-tuned models W + dW_n, dW_n = U S V^T: A_n is V^T of the R largest singular
    values, B_n is U S, c_n the change of the bias and G_n the first R_g rows of V^T, which `vpeft fuse --how smile`
    computes. Places are the linear maps of the blocks, q, k and v apart; everything else stays as it is.

    Trained from nothing, A and G start at random, B and c at zero, and G does not train; then all experts should be
    kept, as an expert that no token chooses learns nothing. That use is ours.
    """

    experts: int = Field(default=2, gt=0)
    """n at each place"""
    rank: int | None = Field(default=4, gt=0)
    """R, at most what a matrix has; None for whole matrices"""
    gate_rank: int = Field(default=1, gt=0)
    """R_g, at most what a matrix has"""
    top_k: int | None = Field(default=None, gt=0)
    """experts of a token; None for all"""
    places: tuple[str, ...] = ()
    """names of the linear maps; none stated: all of the blocks"""
    counts: tuple[int, ...] = ()
    """experts at each of these places, in order, where they differ"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        places = linear_places(backbone, type(self).__name__, self.places)
        if self.counts and (len(self.counts) != len(places) or not self.places or min(self.counts) < 1):
            raise BadField(
                f"SMILE.counts has {len(self.counts)} numbers for {len(self.places)} places. State one each."
            )
        for place, count in zip(places, self.counts or (self.experts,) * len(places), strict=True):
            yield place.parallel(
                RoutedExperts(place.width_in, place.width, count, self.rank, self.gate_rank, self.top_k)
            )


class RoutedExperts(nn.Module):
    """x (..., D_in) -> sum_n w_n (B_n A_n x + c_n), (..., D_out); see `SMILE`.

    Args:
        width_in, width: D_in and D_out.
        experts: how many.
        rank: R; None for B_n alone, (D_out, D_in).
        gate_rank: R_g.
        top_k: how many are kept for a token; None for all.
    """

    gates: Tensor

    def __init__(
        self, width_in: int, width: int, experts: int, rank: int | None, gate_rank: int, top_k: int | None
    ) -> None:
        super().__init__()
        most = min(width_in, width)
        inner = width_in if rank is None else min(rank, most)
        self.A = None if rank is None else nn.Parameter(torch.randn(experts, inner, width_in) / width_in**0.5)
        self.B = nn.Parameter(torch.zeros(experts, width, inner))
        self.shift = nn.Parameter(torch.zeros(experts, width))
        self.register_buffer("gates", torch.randn(experts, min(gate_rank, most), width_in) / width_in**0.5)
        self.top_k = experts if top_k is None else min(top_k, experts)

    def weights(self, x: Tensor) -> Tensor:
        """w (..., experts) of tokens (..., D_in)."""
        norms = torch.einsum("...i,ngi->...ng", x, self.gates).square().sum(-1).sqrt()
        probabilities = norms.softmax(-1)
        if self.top_k == len(self.gates):
            return probabilities
        values, chosen = probabilities.topk(self.top_k, dim=-1)
        return torch.zeros_like(probabilities).scatter(-1, chosen, values / values.sum(-1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        inner = x.unsqueeze(-2) if self.A is None else torch.einsum("...i,nki->...nk", x, self.A)
        made = torch.einsum("...nk,nok->...o", inner * weights.unsqueeze(-1), self.B)
        return made + weights @ self.shift
