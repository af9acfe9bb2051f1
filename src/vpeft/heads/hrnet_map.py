"""HRNet's head for maps: a narrow linear map of each level, all brought to the size of the first and put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.blocks import Block
from ..backbones.features import Features
from ..backbones.last_place import last_map
from ..backbones.places import Place
from ..backbones.points import MissingPlace
from ..head import BadHead, Head
from ..layers.conv_norm_relu import BatchNorm2dOrRunning
from .linear_map import CONV_STD

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from ..batch import Batch


class HrnetMapHead(Head):
    """y = conv 1x1 of ReLU(norm(W [u_1, ..., u_L] + b)), u_l = up(V_l x_l): levels x_l -> (B, K, h, w).

    Levels x_l (B, C_l, h_l, w_l) are the ends of the stages, or with `merged` what the merging of patches before the
    next stage makes of them, and the end of the last stage. V_l has `narrow[l]` rows, W four times as many as all of
    them; `up` resizes bilinearly to the size of the first.

    Source: the head of HRNet (Sun et al., arXiv 1904.04514) with narrow = 18, 36, 72, 144 as MTLoRA, TADFormer and
    DiTASK put it on Swin, with `merged`. On other numbers of levels the widths double from 18 on.

    Args:
        reads: the places of the levels, high resolution first.
        channels: C_l.
        outputs: K.
        narrow: rows of each V_l; none doubles from 18 on.
    """

    kind = "hrnet_map"
    options = ("narrow", "merged")

    def __init__(self, reads: Sequence[str], channels: Sequence[int], outputs: int, narrow: Sequence[int] = ()) -> None:
        super().__init__()
        self.reads = tuple(reads)
        rows = list(narrow) or [18 * 2**level for level in range(len(channels))]
        if len(rows) != len(channels) or min(rows) < 1:
            raise ValueError(f"narrow has {len(rows)} numbers for {len(channels)} levels")
        pairs = zip(channels, rows, strict=True)
        self.linear = nn.ModuleList(nn.Conv2d(width, row, kernel_size=1, bias=False) for width, row in pairs)
        wide = 4 * sum(rows)
        self.fuse = nn.Sequential(nn.Conv2d(sum(rows), wide, kernel_size=1), BatchNorm2dOrRunning(wide), nn.ReLU())
        self.conv = nn.Conv2d(wide, outputs, kernel_size=1)
        nn.init.normal_(self.conv.weight, std=CONV_STD)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    @classmethod
    def on(cls, backbone: Backbone, width: int, outputs: int, /, **options: Any) -> Head:
        """The head on the stages of a backbone.

        Raises:
            MissingPlace: it has no map, or with `merged` does not merge patches between its stages.
            BadHead: an option does not exist, or does not take this value.
        """
        for name in options:
            if name not in cls.options:
                raise BadHead(f"The head {cls.kind!r} has no option {name!r}. It has: {', '.join(cls.options)}.")
        rest = dict(options)
        stages: list[Place] = [stage for stage in backbone.stages if stage.exit is not None and stage.maps]
        places = stages or [last_map(backbone)]
        if rest.pop("merged", False):
            places = [*(_merging(stage) for stage in places[1:]), places[-1]]
        found = {"reads": [place.name for place in places], "channels": [place.width for place in places]}
        return cls.with_options(rest, **found, outputs=outputs)

    def forward(self, features: Features, batch: Batch | None = None) -> Tensor:
        """Levels -> (B, K, h, w), of the size of the first level."""
        levels = [features.map(name) for name in self.reads]
        for name, one in zip(self.reads, levels, strict=True):
            if one.dim() != 4:
                raise MissingPlace(f"{name} has a time axis here, and this head puts together maps of single images.")
        size = levels[0].shape[2:]
        same = [
            functional.interpolate(linear(one), size=size, mode="bilinear", align_corners=False)
            for linear, one in zip(self.linear, levels, strict=True)
        ]
        out: Tensor = self.conv(self.fuse(torch.cat(same, dim=1)))
        return out


def _merging(stage: Place) -> Place:
    """What merges patches at the beginning of a stage; `MissingPlace` where nothing does."""
    found = [part for part in stage.parts.values() if not isinstance(part, Block)]
    if not found:
        raise MissingPlace(f"Nothing merges patches before {stage.name}. Leave merged out.")
    return found[-1]
