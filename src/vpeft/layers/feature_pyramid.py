"""Maps of several resolutions for a decoder or a detector: the stages of a backbone, or a pyramid made of one map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.backbone import Backbone
from ..backbones.features import Features
from ..backbones.last_place import last_map
from ..backbones.places import Place
from ..backbones.points import MissingPlace

NormKind = Literal["train", "frozen"]

# Pixels per cell of the levels that a single map is turned into, and channels of each (ViTDet).
SIMPLE_STRIDES = (4, 8, 16, 32)
SIMPLE_CHANNELS = 256
# Levels of a backbone whose stages have more resolutions than these: the coarsest are kept.
MOST_LEVELS = 4


class StageMaps(nn.Module):
    """Features of one pass -> maps (B, C, H, W) of several resolutions, high resolution first.

    A backbone with stages of several resolutions gives the output of the last stage at each, under a new LayerNorm over
    the channels, as Swin's detectors and segmenters do (Liu et al., arXiv 2103.14030). A backbone with one resolution,
    such as a plain ViT, gives the simple feature pyramid of ViTDet (Li et al., arXiv 2203.16527), made of its last map:

        stride 4: deconvolution 2x2 (D -> D/2), LayerNorm, GELU, deconvolution 2x2 (D/2 -> D/4)
        stride 8: deconvolution 2x2 (D -> D/2)          stride 16: the map          stride 32: max pooling 2x2

    each followed by a convolution 1x1 and a convolution 3x3, without bias, each with a LayerNorm over the channels. The
    factors are those for patches of 16 pixels; other patches get more or fewer deconvolutions or poolings, so that the
    strides stay as they are. Where the patch is no power of two, or the patches do not cover the image exactly, each
    level is resampled bilinearly to its stride.

    Departure from ViTDet: the map is read behind the final norm where the backbone has one before its pooling, because
    a frozen ViT's blocks have channels of very different size there. `place` reads elsewhere.

    Attributes:
        reads: names of the places.
        channels: C of each level.
        strides: pixels per cell of each level.
        settings: what the constructor takes to make the same module again.
    """

    def __init__(
        self,
        places: Sequence[str],
        widths: Sequence[int],
        strides: Sequence[int],
        out_channels: int | None = None,
        norm: NormKind = "train",
    ) -> None:
        """Make the layers.

        Args:
            places: names of the places, high resolution first; a single one makes the simple feature pyramid.
            widths: channels of each place.
            strides: pixels per cell of each place.
            out_channels: C of every level, by a convolution 1x1 behind the norm; None keeps the channels of the stages,
                and takes 256 in the simple feature pyramid.
            norm: "train", or "frozen" for LayerNorms that stay at scale 1 and shift 0, as in Mona's published code.
        """
        super().__init__()
        if norm not in ("train", "frozen"):
            raise ValueError(f"The norm of a pyramid is 'train' or 'frozen', not {norm!r}.")
        if not places or len({len(places), len(widths), len(strides)}) != 1:
            raise ValueError(f"A pyramid needs a width and a stride for each of {list(places)}.")
        self.reads = tuple(places)
        self.settings: dict[str, Any] = {
            "places": list(places),
            "widths": [int(width) for width in widths],
            "strides": [int(stride) for stride in strides],
            "out_channels": out_channels,
            "norm": norm,
        }
        self.patch = int(strides[0]) if len(places) == 1 else 0
        trained = norm == "train"
        if self.patch:
            self.channels = [out_channels or SIMPLE_CHANNELS] * len(SIMPLE_STRIDES)
            self.strides = list(SIMPLE_STRIDES)
            self.levels = nn.ModuleList(
                _simple_level(int(widths[0]), self.channels[0], self.patch, stride, trained) for stride in self.strides
            )
        else:
            self.channels = [out_channels or int(width) for width in widths]
            self.strides = [int(stride) for stride in strides]
            self.levels = nn.ModuleList(_stage_level(int(width), out_channels, trained) for width in widths)

    @classmethod
    def on(
        cls,
        backbone: Backbone,
        out_channels: int | None = None,
        norm: NormKind = "train",
        place: str | None = None,
    ) -> StageMaps:
        """The pyramid of a backbone: at most four levels, the coarsest that there are.

        Args:
            backbone: whose stages are read.
            out_channels, norm: see the constructor.
            place: makes the simple feature pyramid of this place's map, whatever stages there are.

        Raises:
            MissingPlace: the backbone has no map of rows and columns.
        """
        places = [last_map(backbone, place)] if place is not None else _levels(backbone)
        return cls(
            [one.name for one in places],
            [one.width for one in places],
            [one.stride for one in places],
            out_channels,
            norm,
        )

    def forward(self, features: Features) -> list[Tensor]:
        """Features of one pass -> a map (B, C, H, W) for each level."""
        maps = [features.map(name) for name in self.reads]
        for name, one in zip(self.reads, maps, strict=True):
            if one.dim() != 4:
                raise MissingPlace(f"{name} has a time axis here, and a feature pyramid is made of single images.")
        if not self.patch:
            return [level(one) for level, one in zip(self.levels, maps, strict=True)]
        made = [level(maps[0]) for level in self.levels]
        image = features.size or tuple(cells * self.patch for cells in maps[0].shape[2:])
        found = []
        for one, stride in zip(made, self.strides, strict=True):
            cell = stride * self.patch / _power_of_two(self.patch)
            found.append(at_stride(one, stride, [cells * cell for cells in one.shape[2:]], image))
        return found


def at_stride(found: Tensor, stride: int, covers: Sequence[float], image: Sequence[int]) -> Tensor:
    """A map (B, C, h, w) resampled bilinearly to cells of `stride` pixels.

    Args:
        found: the map.
        stride: pixels per cell that are wanted.
        covers: height and width in pixels that the map covers, from the image's first pixel on.
        image: height and width of the image in pixels; the result has as many cells as cover it.
    """
    size = [math.ceil(side / stride) for side in image]
    if all(cells * stride == side for cells, side in zip(size, covers, strict=True)) and tuple(size) == found.shape[2:]:
        return found
    axes = []
    for cells, side in zip(size, covers, strict=True):
        centres = (torch.arange(cells, device=found.device, dtype=torch.float32) + 0.5) * stride
        axes.append(centres * (2 / side) - 1)
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    where = torch.stack((columns, rows), dim=-1).expand(len(found), -1, -1, -1)
    # In single precision: half of it does not place the cells of a large map well enough.
    sampled = functional.grid_sample(found.float(), where, padding_mode="border", align_corners=False)
    return sampled.to(found.dtype)


def _levels(backbone: Backbone) -> list[Place]:
    """The last stage of each resolution, high resolution first; the last map alone where there is one resolution."""
    found: dict[int, Place] = {}
    for stage in backbone.stages:
        if stage.exit is not None and stage.maps:
            found[stage.stride] = stage
    if len(found) < 2:
        return [last_map(backbone)]
    return [found[stride] for stride in sorted(found)][-MOST_LEVELS:]


def _stage_level(width: int, out_channels: int | None, trained: bool) -> nn.Module:
    norm = LayerNorm2d(width, affine=trained)
    return norm if out_channels is None else nn.Sequential(norm, nn.Conv2d(width, out_channels, kernel_size=1))


def _simple_level(width: int, out_channels: int, patch: int, stride: int, trained: bool) -> nn.Sequential:
    steps: list[nn.Module] = []
    doublings = round(math.log2(_power_of_two(patch) / stride))
    for _ in range(doublings):
        if steps:
            steps += [LayerNorm2d(width, affine=trained), nn.GELU()]
        steps.append(nn.ConvTranspose2d(width, max(1, width // 2), kernel_size=2, stride=2))
        width = max(1, width // 2)
    # Cells that fill no whole cell of the next level are kept, as the stages of Swin keep them.
    steps += [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-doublings)]
    steps += [
        nn.Conv2d(width, out_channels, kernel_size=1, bias=False),
        LayerNorm2d(out_channels, affine=trained),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out_channels, affine=trained),
    ]
    return nn.Sequential(*steps)


def _power_of_two(patch: int) -> int:
    """The power of two that is nearest to a patch size by their ratio."""
    return int(2 ** round(math.log2(patch)))
