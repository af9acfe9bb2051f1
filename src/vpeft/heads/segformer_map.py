"""SegFormer's decoder: a linear layer for each level, all brought to the size of the first and put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from ..backbones.features import Features
from ..layers.conv_norm_relu import ConvNormReLU, MapNorm
from .linear_map import CONV_STD
from .stage_head import StageHead

if TYPE_CHECKING:
    from ..batch import Batch


class SegformerMapHead(StageHead):
    """y = conv 1x1 of ReLU(norm(W [u_L, ..., u_1])), u_l = up(W_l x_l + b_l): levels x_l -> (B, K, h, w).

    x_l (B, C_l, h_l, w_l) are the levels of `StageMaps`; `up` resizes bilinearly to the size of the first.

    Source: the all-MLP decoder of SegFormer (Xie et al., arXiv 2105.15203), which has 256 channels for B0 and B1 and
    768 for the larger ones.

    Args:
        pyramid: settings of the `StageMaps`.
        outputs: K.
        channels: of each u_l.
        dropout: share of the channels, each as a whole map, that training drops before the last convolution.
        norm: "batch" (see `BatchNorm2dOrRunning` for single values), or "group", which does not depend on the batch.
    """

    kind = "segformer_map"
    options = ("channels", "dropout", "norm", "level_norm", "place")

    def __init__(
        self,
        pyramid: Mapping[str, Any],
        outputs: int,
        channels: int = 256,
        dropout: float = 0.1,
        norm: MapNorm = "batch",
    ) -> None:
        super().__init__(pyramid)
        self.linear = nn.ModuleList(nn.Conv2d(width, channels, kernel_size=1) for width in self.maps.channels)
        self.fuse = ConvNormReLU(channels * len(self.linear), channels, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.conv = nn.Conv2d(channels, outputs, kernel_size=1)
        nn.init.normal_(self.conv.weight, std=CONV_STD)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """Levels -> (B, K, h, w), of the size of the first level."""
        levels = self.maps(features)
        size = levels[0].shape[2:]
        same = [
            functional.interpolate(linear(one), size=size, mode="bilinear", align_corners=False)
            for linear, one in zip(self.linear, levels, strict=True)
        ]
        return self.conv(self.dropout(self.fuse(torch.cat(same[::-1], dim=1))))
