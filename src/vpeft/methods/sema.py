"""SEMA: several bottlenecks beside an MLP, mixed by what each image's mean token says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.bottleneck import Bottleneck
from ..layers.pull import Pull
from ..method import BadField, Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("sema", category="addition", family="adapter", paper="2403.18886", year=2025, venue="CVPR")
class SEMA(Method):
    """x' = x + MLP(LN x) + sum_m w_m A_m(x), w = softmax(R m(x)) with the mean token m(x) (D,) and one row of R each.

    A_m(x) = s (W_up drop(ReLU(W_down x)) + b_up), as AdaptFormer's. The last `expandable` blocks can have several A,
    and each of theirs has a descriptor, an autoencoder D -> `descriptor` -> D of the mean token. In a single training
    there is one A, and descriptors do not train. Over a stream of tasks the learner of the same name adds to them.
    """

    bottleneck: int = Field(default=16, gt=0)
    """rows of W_down"""
    scale: float = 0.1
    """s"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """after the ReLU"""
    expandable: int = Field(default=3, ge=0)
    """how many of the last blocks can have several A"""
    adapters: tuple[int, ...] = ()
    """how many A each of these blocks has, in order; none stated: one each"""
    descriptor: int = Field(default=128, gt=0)
    """inner width of the autoencoders"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        blocks = len(backbone.blocks)
        first = max(0, blocks - self.expandable)
        counts = self.adapters or (1,) * (blocks - first)
        if len(counts) != blocks - first or min(counts, default=1) < 1:
            raise BadField(
                f"SEMA.adapters = {list(self.adapters)}: {blocks - first} blocks can have several, so state"
                f" {blocks - first} numbers from 1 on."
            )
        for block in backbone.blocks:
            described = block.index >= first
            layer = Mixture(
                block.dim,
                self.bottleneck,
                counts[block.index - first] if described else 1,
                self.descriptor if described else None,
                self.scale,
                self.dropout,
            )
            yield block.mlp_branch.parallel(layer)

    def penalty(self, tuned: TunedModel) -> Tensor | None:
        parts = [
            found
            for edit in tuned.adapter().edits
            if isinstance(edit.layer, Mixture) and (found := edit.layer.error.take()) is not None
        ]
        return torch.stack(parts).sum() if parts else None


class Mixture(nn.Module):
    """x (B, ..., D) -> sum_m w_m A_m(x); one A alone has the weight 1.

    Args:
        width: D.
        bottleneck, scale, dropout: of each A.
        count: how many.
        descriptor: inner width of an autoencoder for each A; None for none.
    """

    def __init__(
        self, width: int, bottleneck: int, count: int, descriptor: int | None, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            [Bottleneck(width, bottleneck, scale=scale, dropout=dropout) for _ in range(count)]
        )
        self.routers = nn.ModuleList([nn.Linear(width, 1) for _ in range(count)])
        self.descriptors = nn.ModuleList(
            [] if descriptor is None else [Descriptor(width, descriptor) for _ in range(count)]
        )
        self.descriptors.requires_grad_(False)
        if count == 1:
            self.routers.requires_grad_(False)  # the softmax of one number is 1
        self.describing = False  # whether the newest descriptor learns
        self.error = Pull()

    def forward(self, x: Tensor) -> Tensor:
        mean = mean_token(x)
        if self.describing:
            newest = self.descriptors[-1]
            self.error.note(newest(mean.detach()).mean())
        made = torch.stack([expert(x) for expert in self.experts])
        if len(self.experts) == 1:
            return made[0]
        weights = torch.cat([router(mean) for router in self.routers], dim=1).softmax(1).T
        return (made * weights.reshape(*weights.shape, *[1] * (x.dim() - 1))).sum(0)


def mean_token(x: Tensor) -> Tensor:
    """(B, ..., D) -> (B, D)."""
    return x.flatten(1, -2).mean(1)


class Descriptor(nn.Module):
    """The squared error (B,) of an autoencoder of mean tokens (B, D); `mean` and `std` of it on its own task."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, mean: Tensor) -> Tensor:
        back: Tensor = self.up(self.down(mean).relu())
        return (back - mean).square().mean(1)

    def strangeness(self, mean: Tensor) -> Tensor:
        """|error - mean| / std, (B,)."""
        found: Tensor = (self(mean) - self.mean).abs() / self.std.clamp(min=1e-12)
        return found
