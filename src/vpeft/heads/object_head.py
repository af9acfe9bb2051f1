"""What the heads of detectors share: images and targets as torchvision's parts take them, and when they give what."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from ..backbones.features import Features
from ..head import Head, wants_raw
from ..layers.feature_pyramid import StageMaps

if TYPE_CHECKING:
    from ..batch import Batch

# What the backbone and the data decide.
_FOUND = ("pyramid", "outputs")

Levels = OrderedDict[str, Tensor]
"""Maps (B, C, H, W) by name, high resolution first, as torchvision's parts take them."""

Detections = dict[str, Tensor]
"""Detections of one image: `boxes` (N, 4) xyxy in pixels of the batch, `labels` (N,) that count from 0, `scores` (N,),
best first, and for some heads `box_masks` (N, 1, M, M), the probability of each part of the box."""


class ObjectHead(Head):
    """A head that finds objects on a feature pyramid.

    In training it gives {"losses": {name: scalar}} of a batch with targets, in evaluation a list of `Detections`, one
    for each image. In training without targets, and within `vpeft.head.raw_outputs`, it gives its raw outputs, the
    tensors before any choice among boxes.

    Targets are mappings with `boxes` (N, 4) xyxy in pixels of the batch, `labels` (N,) from 0, `crowd` (N,), perhaps
    `masks` (N, H, W), and `size`, the rows and columns of the batch that the image fills. Crowds are not learnt.

    Options are what the constructor of a head takes besides `pyramid` and `outputs`, and those that choose the levels.

    Class attributes:
        level_options: `level_norm`, "train" or "frozen", the LayerNorm of each level; `place`, whose map a pyramid is
            made of.

    Args:
        pyramid: settings of the `StageMaps`.
        channels: of every level.
        extra: further levels, coarser ones.
    """

    level_options: ClassVar[tuple[str, ...]] = ("level_norm", "place")

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        ends = cls.level_options
        cls.options = (*(name for name in cls.options if name not in (*_FOUND, *ends)), *ends)

    def __init__(self, pyramid: Mapping[str, Any], channels: int, extra: ExtraFPNBlock) -> None:
        super().__init__()
        self.maps = StageMaps(**pyramid)
        self.reads = self.maps.reads
        self.fpn = FeaturePyramidNetwork(list(self.maps.channels), channels, extra)

    def levels(self, features: Features) -> Levels:
        """Features of one pass -> the maps (B, channels, H, W) of all levels by name, high resolution first."""
        found = self.maps(features)
        levels: Levels = self.fpn(OrderedDict((str(k), one) for k, one in enumerate(found)))
        return levels

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """Losses of a batch with targets, detections, or raw outputs; see the class."""
        levels = self.levels(features)
        targets = None if batch is None or not isinstance(batch.targets, (list, tuple)) else batch.targets
        images = self._images(features, levels, batch, targets)
        known = targets is not None and all("boxes" in one for one in targets)
        if wants_raw() or (self.training and not known):
            return self.raw(images, levels)
        if self.training:
            assert targets is not None
            losses = self.losses(images, levels, [_learnt(one) for one in targets])
            return {"losses": {name.removeprefix("loss_"): value.float() for name, value in losses.items()}}
        return self.found(images, levels)

    @abstractmethod
    def raw(self, images: ImageList, levels: Levels) -> Mapping[str, Tensor]:
        """The outputs of all layers before boxes are chosen, so that every tensor of the head has a part in them."""

    @abstractmethod
    def losses(self, images: ImageList, levels: Levels, targets: list[Detections]) -> dict[str, Tensor]:
        """The parts of the mean loss of a batch."""

    @abstractmethod
    def found(self, images: ImageList, levels: Levels) -> list[Detections]:
        """The detections of each image."""

    def _images(
        self,
        features: Features,
        levels: Levels,
        batch: Batch | None,
        targets: Sequence[Mapping[str, Any]] | None,
    ) -> ImageList:
        """How large the images are; torchvision's parts look at sizes alone."""
        first = next(iter(levels.values()))
        if batch is not None and isinstance(batch.inputs, Tensor) and batch.inputs.dim() == 4:
            size = batch.inputs.shape[-2:]
        elif features.size is not None:
            size = torch.Size(features.size[-2:])
        else:
            size = torch.Size(int(side) * self.maps.strides[0] for side in first.shape[-2:])
        whole = (int(size[0]), int(size[1]))
        sizes = [whole] * len(first)
        if targets is not None and len(targets) == len(first):
            sizes = [(int(one["size"][0]), int(one["size"][1])) if "size" in one else whole for one in targets]
        return ImageList(first.new_empty((len(first), 0, *whole)), sizes)


def _learnt(target: Mapping[str, Any]) -> Detections:
    """The objects of an image that are learnt: all but crowds."""
    names = [name for name in ("boxes", "labels", "masks") if name in target]
    crowd = target.get("crowd")
    if crowd is None or not bool(crowd.any()):
        return {name: target[name] for name in names}
    return {name: target[name][~crowd] for name in names}
