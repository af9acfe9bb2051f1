"""A small linear map on the channels with the largest activations on the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ..backbones.places import Place, Projection
from ..backbones.points import Layout
from ..errors import VpeftError


class SalientMap(nn.Module):
    """x[i] -> x[i] + s (W x[i] + b) on the chosen channels i of x (..., D), or s x[i] + W x[i] + b."""

    index: Tensor

    def __init__(self, width: int, channels: int, scale: float, scale_input: bool) -> None:
        super().__init__()
        count = min(channels, width)
        self.width, self.scale, self.scale_input = width, scale, scale_input
        self.map = nn.Linear(count, count)
        nn.init.trunc_normal_(self.map.weight, std=0.02)
        nn.init.zeros_(self.map.bias)
        self.register_buffer("index", torch.arange(count))

    def forward(self, x: Tensor) -> Tensor:
        matrix, shift = self._change()
        change = F.linear(x.index_select(-1, self.index), matrix, shift)
        return x.index_add(-1, self.index, change.to(x.dtype))

    def _change(self) -> tuple[Tensor, Tensor]:
        """What is added to the chosen channels, as a matrix (K, K) and a shift (K,)."""
        if not self.scale_input:
            return self.scale * self.map.weight, self.scale * self.map.bias
        return self.map.weight + (self.scale - 1) * torch.eye(len(self.index)).to(self.map.weight), self.map.bias

    def linear_map(self) -> tuple[Tensor, Tensor]:
        """(D, D) and (D,): the whole as x -> M x + m."""
        matrix, shift = self._change()
        whole = torch.eye(self.width, dtype=matrix.dtype, device=matrix.device)
        whole[self.index[:, None], self.index] += matrix
        return whole, shift.new_zeros(self.width).index_copy(0, self.index, shift)


class Salience:
    """Sums of squares of one place's channels by class, and the choice they lead to."""

    def __init__(self, place: Place, layer: SalientMap) -> None:
        self.place, self.layer = place, layer
        self.labels = torch.empty(0)
        self.squares: dict[int, Tensor] = {}

    def watch(self) -> RemovableHandle:
        point = self.place.exit
        assert point is not None
        if point.side == "input":
            return point.module.register_forward_pre_hook(lambda _m, args: self.add(args[0]))
        return point.module.register_forward_hook(lambda _m, _args, output: self.add(output))

    def add(self, x: Tensor) -> None:
        """Add one batch: tokens without the prefix, maps, or the windows of each image in order."""
        if self.place.layout is Layout.CHANNELS_FIRST:
            x = x.movedim(1, -1)
        elif self.place.layout is Layout.TOKENS:
            x = x[:, self.place.prefix :]
        rows = self.place.rows if isinstance(self.place, Projection) else None
        x = x if rows is None else rows.take(x)
        squares = x.double().reshape(len(self.labels), -1, x.shape[-1]).square().sum(dim=1)
        for label in set(self.labels.tolist()):
            mine = squares[self.labels == label].sum(dim=0)
            self.squares[label] = self.squares[label] + mine if label in self.squares else mine

    def choose(self) -> None:
        if not self.squares:
            raise VpeftError("Salient channels are picked from labelled images, but `prepare` was given none.")
        scores = torch.stack([total.sqrt() for total in self.squares.values()]).mean(dim=0)
        self.layer.index.copy_(scores.topk(len(self.layer.index)).indices.sort().values)
