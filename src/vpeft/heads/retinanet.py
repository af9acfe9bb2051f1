"""RetinaNet: classes and boxes at every anchor of a feature pyramid, learnt by the focal loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from ..head import Head
from ..layers.anchors import StrideAnchors
from ..layers.feature_pyramid import NormKind, StageMaps
from .object_head import Detections, Levels, ObjectHead

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone

# Levels that two convolutions of stride 2 add behind the coarsest map.
EXTRA = 2


class RetinaNetHead(ObjectHead):
    """One convolutional network for the classes and one for the boxes, the same on each level, with 9 anchors a cell.

    Lin et al., arXiv 1708.02002, in torchvision's implementation: four convolutions 3x3 each, focal loss (gamma 2,
    alpha 0.25), L1 loss of the box codes, anchors positive from IoU 0.5 and negative below 0.4. Class numbers count
    from 0, as scores are sigmoids and no background is a class.

    Args:
        pyramid: settings of the `StageMaps`.
        outputs: number of classes.
        channels: of the pyramid and of both networks.
        anchor_scale: side of the smallest anchor of a level, in strides of that level.
        anchor_sizes: in place of it, the sides of the anchors in pixels, a list for each level.
        ratios: height / width of the anchors.
        score: detections below this score are left out.
        nms: IoU from which the weaker of two detections of a class is left out.
        detections: largest number of detections in an image.
        candidates: detections of a level before suppression.
    """

    kind = "retinanet"
    level_options = ("level_norm", "place", "finest")

    def __init__(
        self,
        pyramid: Mapping[str, Any],
        outputs: int,
        channels: int = 256,
        anchor_scale: float = 4.0,
        anchor_sizes: Sequence[Sequence[float]] | None = None,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        score: float = 0.05,
        nms: float = 0.5,
        detections: int = 100,
        candidates: int = 1000,
    ) -> None:
        last = StageMaps(**pyramid).channels[-1]
        super().__init__(pyramid, channels, LastLevelP6P7(last, channels))
        first = list(self.maps.strides)
        strides = [*first, *(first[-1] * 2 ** (k + 1) for k in range(EXTRA))]
        octave = [2 ** (k / 3) for k in range(3)]
        sizes = anchor_sizes or [[anchor_scale * stride * part for part in octave] for stride in strides]
        if len(sizes) != len(strides):
            raise ValueError(f"anchor_sizes has {len(sizes)} lists and there are {len(strides)} levels: {strides}")
        self.fpn.out_channels = channels
        self.detector = RetinaNet(
            self.fpn,
            outputs,
            anchor_generator=StrideAnchors(strides, sizes, ratios),
            score_thresh=score,
            nms_thresh=nms,
            detections_per_img=detections,
            topk_candidates=candidates,
        )
        del self.detector.backbone  # it is `fpn`, and a tensor has one name

    @classmethod
    def on(cls, backbone: Backbone, width: int, outputs: int, /, **options: Any) -> Head:
        """The head on the maps of a backbone.

        Options besides those of the constructor: `level_norm`, the norm of the `StageMaps`, and their `place`;
        `finest`, the number of the finest stage that is read, by default the second of four or three and the first of
        two.
        """
        rest = dict(options)
        norm: NormKind = rest.pop("level_norm", "train")
        maps = StageMaps.on(backbone, norm=norm, place=rest.pop("place", None)).settings
        stages = len(maps["places"])
        finest = int(rest.pop("finest", 1 if stages > 2 else 0))
        if stages > 1:  # a single map gives all levels
            maps = {**maps, **{name: maps[name][finest:] for name in ("places", "widths", "strides")}}
        return cls.with_options(rest, pyramid=maps, outputs=outputs)

    def raw(self, images: ImageList, levels: Levels) -> Mapping[str, Tensor]:
        """The logits of the classes and the codes of the boxes, at each anchor."""
        made: dict[str, Tensor] = self.detector.head(list(levels.values()))
        return {name: value.float() for name, value in made.items()}

    def losses(self, images: ImageList, levels: Levels, targets: list[Detections]) -> dict[str, Tensor]:
        """Focal loss and L1 loss, each for an image's positive anchors, mean over the images."""
        anchors = self.detector.anchor_generator(images, list(levels.values()))
        found = self.detector.compute_loss(targets, self.raw(images, levels), anchors)
        return cast(dict[str, Tensor], found)

    def found(self, images: ImageList, levels: Levels) -> list[Detections]:
        """The detections of each image."""
        maps = list(levels.values())
        anchors = self.detector.anchor_generator(images, maps)
        each = self.detector.anchor_generator.num_anchors_per_location()
        counts = [number * level.shape[-2] * level.shape[-1] for number, level in zip(each, maps, strict=True)]
        by_level = {name: list(torch.split(value, counts, dim=1)) for name, value in self.raw(images, levels).items()}
        split = [list(torch.split(one, counts)) for one in anchors]
        found = self.detector.postprocess_detections(by_level, split, images.image_sizes)
        return cast(list[Detections], found)
