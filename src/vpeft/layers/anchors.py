"""torchvision's anchors and RoI pooling, on a pyramid whose strides are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

# A box of this side is pooled from the level of this stride; torchvision adds so much before it rounds down.
CANONICAL_SIDE, CANONICAL_STRIDE = 224, 16
ROUNDING = 1e-6


class StrideAnchors(AnchorGenerator):  # type: ignore[misc]
    """torchvision's anchors, for levels whose pixels per cell are stated.

    torchvision divides the size of the image by that of the map and rounds down, which moves the anchors away from
    their cells where a map has a partly filled last cell; and it gives anchors the precision of the features, in which
    coordinates beyond 256 are rounded under bfloat16. These are always single precision.

    Args:
        strides: pixels per cell of each level, high resolution first.
        sizes: for each level the sides in pixels of its square anchors.
        ratios: height / width, the same for each level.
    """

    def __init__(self, strides: Sequence[int], sizes: Sequence[Sequence[float]], ratios: Sequence[float]) -> None:
        super().__init__(tuple(tuple(level) for level in sizes), (tuple(ratios),) * len(sizes))
        self.strides = [int(stride) for stride in strides]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Images and their maps -> for each image all anchors (A, 4), xyxy in pixels, high resolution first."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        grids = [list(level.shape[-2:]) for level in feature_maps]
        steps = [[torch.tensor(stride), torch.tensor(stride)] for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, steps))
        return [anchors for _ in image_list.image_sizes]


class StridePool(MultiScaleRoIAlign):  # type: ignore[misc]
    """torchvision's RoI align on a pyramid, with stated strides in place of those that it guesses from the first batch.

    A box is pooled from the level that equation 1 of the FPN paper (Lin et al., arXiv 1612.03144) names: sides of 224
    pixels from stride 16, half of that from stride 8.

    Args:
        strides: pixels per cell of each level, high resolution first.
        size: rows and columns of the result.
        samples: points per cell of the result, in each direction.
    """

    def __init__(self, strides: Sequence[int], size: int, samples: int = 2) -> None:
        super().__init__([str(level) for level in range(len(strides))], size, samples)
        self.scales = [1 / stride for stride in strides]
        self.map_levels = LevelOfBox(strides)


class LevelOfBox:
    """The number of the level that a box is pooled from, for levels of any strides: torchvision's rule for powers of 2.

    Where equation 1 names a stride that no level has, it is the next coarser level.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        self.strides = [float(stride) for stride in strides]

    def __call__(self, boxlists: list[Tensor]) -> Tensor:
        """Boxes (N, 4) of each image -> levels (sum of N)."""
        boxes = torch.cat(boxlists)
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        exponent = torch.floor(math.log2(CANONICAL_STRIDE) + torch.log2(side / CANONICAL_SIDE) + ROUNDING)
        known = boxes.new_tensor([round(math.log2(stride)) for stride in self.strides])
        return torch.searchsorted(known, exponent).clamp(max=len(known) - 1)
