"""Deformable attention over maps of several resolutions, by bilinear sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class DeformableAttention(nn.Module):
    """Each query looks at a few points of each level, near its own place, which it chooses itself.

    For query q at the place r (x and y from 0 to 1), head m, level l and point k:

        y = W_o [ sum_l,k A_mlk(q) V_ml(r + o_mlk(q) / (w_l, h_l)) for each m ] + b_o

    V_l = W_v x_l + b_v is a map with `ratio` times D channels, split among the heads, sampled bilinearly, with zeros
    beyond its edge; o = W_s q + b_s are offsets in cells of the level, A = softmax over levels and points of W_a q +
    b_a. W_s, W_a and b_a start at zero; b_s points head m in the direction 2 pi m / heads, point k at k + 1 cells.

    Source: Deformable DETR (Zhu et al., arXiv 2010.04159). There a kernel of its own samples; the result is the same.

    Args:
        width: channels D of queries and maps.
        heads: of the attention; they divide ratio times D.
        levels: maps.
        points: of each level that a head looks at.
        ratio: channels of the values for each of D.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int = 4, ratio: float = 1.0) -> None:
        super().__init__()
        inner = int(width * ratio)
        if inner < 1 or inner % heads:
            raise ValueError(f"{heads} attention heads do not divide {inner} channels of values.")
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
        for layer in (self.weights, self.value, self.out):
            nn.init.zeros_(layer.bias)
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
        with torch.no_grad():
            angles = torch.arange(heads) * (2 * math.pi / heads)
            ways = torch.stack((angles.cos(), angles.sin()), dim=-1)
            ways = ways / ways.abs().amax(dim=-1, keepdim=True)
            steps = torch.arange(1, points + 1)
            start = ways[:, None, None] * steps[:, None]  # (heads, 1, points, 2)
            self.offsets.bias.copy_(start.expand(heads, levels, points, 2).flatten())

    def forward(self, queries: Tensor, places: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Queries (B, N, D) at places (N, 2), each x and y from 0 to 1; maps (B, h, w, D) -> (B, N, D)."""
        batch, count, _ = queries.shape
        heads, levels, points = self.heads, self.levels, self.points
        offsets = self.offsets(queries).reshape(batch, count, heads, levels, points, 2)
        weights = self.weights(queries).reshape(batch, count, heads, levels * points).softmax(-1)
        weights = weights.reshape(batch, count, heads, levels, points)
        total: Tensor | None = None
        for level, one in enumerate(maps):
            height, width = one.shape[1:3]
            value = self.value(one).reshape(batch, height, width, heads, -1)
            value = value.permute(0, 3, 4, 1, 2).flatten(0, 1)  # (B heads, d, h, w)
            cells = torch.tensor([width, height], dtype=places.dtype, device=places.device)
            at = places[None, :, None, None] + offsets[:, :, :, level] / cells
            at = (2 * at - 1).transpose(1, 2).flatten(0, 1)  # (B heads, N, points, 2)
            sampled = functional.grid_sample(value.float(), at.float(), padding_mode="zeros", align_corners=False)
            share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
            part = (sampled * share).sum(-1)
            total = part if total is None else total + part
        assert total is not None
        mixed = total.reshape(batch, -1, count).transpose(1, 2).to(queries.dtype)
        out: Tensor = self.out(mixed)
        return out


def cell_centres(size: Sequence[int], like: Tensor) -> Tensor:
    """The centres of the cells of a map (h, w), row by row: (h w, 2), each x and y from 0 to 1, beside `like`."""
    height, width = size
    rows = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) / height
    columns = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) / width
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()), dim=-1)
