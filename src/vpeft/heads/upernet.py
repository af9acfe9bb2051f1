"""UPerNet: pooled context of the last level, a feature pyramid, all levels together; and a small auxiliary head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.features import Features
from ..head import BadHead, wants_raw
from ..layers.conv_norm_relu import ConvNormReLU, MapNorm
from .linear_map import CONV_STD
from .stage_head import StageHead

if TYPE_CHECKING:
    from ..batch import Batch

# Sides of the grids that the last level is pooled to.
POOLED_SIDES = (1, 2, 3, 6)
# The level that the auxiliary head reads, counted from the finest: of stride 16 where there are four.
AUXILIARY_LEVEL = 2


class UperNetHead(StageHead):
    """Levels x_1 ... x_L of `StageMaps` -> logits (B, K, h, w) of the size of the first.

        p = conv3 [x_L, up(conv1(pool_s(x_L))) for s in 1, 2, 3, 6]            pyramid pooling
        u_L = p,  u_l = conv1(x_l) + up(u_l+1)                                   top-down path
        y = conv1x1 of dropout(conv3 [conv3(u_1), ..., up(conv3(u_L-1)), up(u_L)])

    where conv1 and conv3 are a convolution, a norm and ReLU, and `up` resizes bilinearly. In training the output is a
    mapping: `logits`, and `auxiliary` (B, K, h', w'), the logits of a fully convolutional head with one conv3 on the
    third level (or the last but one, where there are fewer). The task weights its loss. In evaluation mode the
    auxiliary head does not run, and the output is the logits.

    Source: UPerNet (Xiao et al., arXiv 1807.10221) with the auxiliary head, the dropout and the starts of the weights
    that mmsegmentation gives it, by which Swin and ConvNeXt are judged on ADE20K.

    Args:
        pyramid: settings of the `StageMaps`.
        outputs: K.
        channels: of each convolution.
        dropout: share of the channels, each as a whole map, that training drops before a last convolution.
        norm: "batch", or "group", which does not depend on the batch. A "batch" norm uses running statistics for one
            image alone that is pooled to one cell: see `BatchNorm2dOrRunning`.
        auxiliary: whether there is an auxiliary head.
        auxiliary_channels: of its convolution.
    """

    kind = "upernet"
    options = ("channels", "dropout", "norm", "auxiliary", "auxiliary_channels", "level_norm", "place")

    def __init__(
        self,
        pyramid: Mapping[str, Any],
        outputs: int,
        channels: int = 512,
        dropout: float = 0.1,
        norm: MapNorm = "batch",
        auxiliary: bool = True,
        auxiliary_channels: int = 256,
    ) -> None:
        super().__init__(pyramid)
        widths = self.maps.channels
        if len(widths) < 2:
            raise BadHead("The head 'upernet' needs at least two levels.")
        last = widths[-1]
        self.pooled = nn.ModuleList(ConvNormReLU(last, channels, norm=norm) for _ in POOLED_SIDES)
        self.context = ConvNormReLU(last + len(POOLED_SIDES) * channels, channels, 3, norm)
        self.lateral = nn.ModuleList(ConvNormReLU(width, channels, norm=norm) for width in widths[:-1])
        self.smooth = nn.ModuleList(ConvNormReLU(channels, channels, 3, norm) for _ in widths[:-1])
        self.fuse = ConvNormReLU(len(widths) * channels, channels, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.conv = _last(channels, outputs)
        self.auxiliary: nn.Sequential | None = None
        if auxiliary:
            self.auxiliary_level = min(AUXILIARY_LEVEL, len(widths) - 2)
            self.auxiliary = nn.Sequential(
                ConvNormReLU(widths[self.auxiliary_level], auxiliary_channels, 3, norm),
                nn.Dropout2d(dropout),
                _last(auxiliary_channels, outputs),
            )

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """Levels -> logits (B, K, h, w); in training {"logits": ..., "auxiliary": ...} where there is such a head."""
        levels = self.maps(features)
        logits = self.decode(levels)
        if self.auxiliary is None or not (self.training or wants_raw()):
            return logits
        return {"logits": logits, "auxiliary": self.auxiliary(levels[self.auxiliary_level])}

    def decode(self, levels: list[Tensor]) -> Tensor:
        """Levels (B, C_l, h_l, w_l) -> logits of the size of the first."""
        last = levels[-1]
        pooled = [
            _to_size(conv(functional.adaptive_avg_pool2d(last, side)), last)
            for side, conv in zip(POOLED_SIDES, self.pooled, strict=True)
        ]
        found = [self.context(torch.cat([last, *pooled], dim=1))]
        for conv, level in zip(reversed(self.lateral), reversed(levels[:-1]), strict=True):
            side = conv(level)
            found.insert(0, side + _to_size(found[0], side))
        smooth = [conv(one) for conv, one in zip(self.smooth, found[:-1], strict=True)]
        same = [_to_size(one, smooth[0]) for one in (*smooth, found[-1])]
        logits: Tensor = self.conv(self.dropout(self.fuse(torch.cat(same, dim=1))))
        return logits


def _last(channels: int, outputs: int) -> nn.Conv2d:
    made = nn.Conv2d(channels, outputs, kernel_size=1)
    nn.init.normal_(made.weight, std=CONV_STD)
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made


def _to_size(found: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(found, size=like.shape[2:], mode="bilinear", align_corners=False)
