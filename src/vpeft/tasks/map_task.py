"""What tasks with an answer for each pixel have in common: sizes of images, batches of several sizes, the way back."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from ..batch import Batch, Sample, as_sample, collate
from ..data.joint import Fitting, FitTo, MapTransform, ShorterSide, with_shorter_side, within
from ..data.joint_maps import MapLayer, MapsTransform
from ..data.preprocessing import Preprocessing
from ..data.steps import CropTo, ResizeTo, height_and_width
from ..task import Prediction, Task

# Sides of images of several sizes in one batch are padded to a multiple of these pixels, the coarsest stride of most
# backbones.
SIDES = 32


class MapTask(Task):
    """A task with one answer for each pixel: targets are maps (H, W) of the images' size.

    Images get one size, that of the backbone, as in other tasks, until an option says otherwise. A batch of images of
    several sizes, or whose shorter side has a stated length, is padded at the right and bottom, images with zeros and
    maps with `padding`, to sides that are multiples of 32.
    """

    size: tuple[int, int] | None = None
    """height and width that images are fitted to, or those of the window of a random crop; one number is a square"""
    shortest: tuple[int, ...] = ()
    """length of the shorter side; training draws from several, evaluation takes the largest; with `size` as well,
    training uses that and evaluation uses this"""
    longest: int | None = Field(default=None, ge=1)
    """limit of the longer side, where `shortest` is given"""
    fit: Fitting | None = None
    """how `size` is reached: longer (ratio kept, padded) or squash; by default as the backbone's preprocessing does"""
    image_changes: str = Field(default="", alias="augment")
    """changes of training images, joined by +: flip, photometric, crop, scale_jitter, scaled_crop"""

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, size: Any) -> Any:
        return (size, size) if isinstance(size, int) and not isinstance(size, bool) else size

    @field_validator("shortest", mode="before")
    @classmethod
    def _several(cls, shortest: Any) -> Any:
        return (shortest,) if isinstance(shortest, int) and not isinstance(shortest, bool) else shortest

    @model_validator(mode="after")
    def _sides(self) -> MapTask:
        if any(side < 1 for side in (*(self.size or ()), *self.shortest)):
            raise ValueError("size and shortest are whole numbers of pixels above 0")
        if self.longest is not None and not self.shortest:
            raise ValueError("longest limits the longer side where shortest gives the shorter one; give shortest too")
        return self

    @property
    def own_transforms(self) -> bool:
        """Whether an option here changes how images are resized or changed."""
        return bool(self.size or self.shortest or self.fit or self.image_changes)

    @property
    def shown_size(self) -> tuple[int, int] | Literal["own", "any"]:
        """That of `size` where nothing else is stated."""
        if self.shortest:
            return "any"
        return self.size or "own"

    @property
    def reads_alike(self) -> tuple[Any, ...]:
        """The options that images and maps are read by."""
        return (self.images_per_sample, self.size, self.shortest, self.longest, self.fit, self.image_changes)

    @property
    @abstractmethod
    def padding(self) -> float:
        """The value of a target's pixels that count nowhere."""

    @property
    def layer(self) -> MapLayer:
        """How the map goes through the transforms of several maps: as class numbers, unless the task says otherwise."""
        return MapLayer(self.target_kind, "classes")

    @abstractmethod
    def map_transform(
        self,
        preprocessing: Preprocessing,
        training: bool,
        size: tuple[int, int] | None,
        shortest: tuple[int, ...] | None,
        longest: int | None,
        augment: str,
        fit: Fitting | None,
    ) -> Callable[..., Any]:
        """The transform of images with this task's maps; arguments as in vpeft/data/joint.py."""

    def transforms(self, preprocessing: Preprocessing, augmentation: str, training: bool) -> Callable[..., Any]:
        """The preprocessing's own transform, or that of the options; image and map together."""
        if not self.own_transforms:
            return super().transforms(preprocessing, augmentation, training)
        fitted = self.size if training or not self.shortest else None
        shortest = None if fitted or not self.shortest else self.shortest
        return self.map_transform(
            preprocessing, training, fitted, shortest, self.longest, self.image_changes or "none", self.fit
        )

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Samples as a batch: images (B, C, H, W), maps (B, H, W)."""
        whole = [as_sample(sample) for sample in samples]
        images = [sample.input for sample in whole]
        if not all(isinstance(image, Tensor) and image.dim() == 3 for image in images):
            return collate(whole)
        sizes = {tuple(image.shape[1:]) for image in images}
        if len(sizes) == 1 and (not self.shortest or sizes == {self.size}):
            return collate(whole)
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        sides = (_whole(height), _whole(width))
        return collate(
            [Sample(_filled(one.input, sides, 0.0), _filled_map(one, sides, self.padding), one.id) for one in whole]
        )

    def sample_of(self, image: Any, transform: Callable[..., Any], id: str) -> Sample:
        """A sample of an image without a target, which holds where the image lies in what the model is given."""
        return Sample(transform(image), window_of(transform, height_and_width(image)).as_target(), id)

    def truth(self, batch: Batch) -> list[Prediction]:
        """The target of each sample as a map (H, W)."""
        if not isinstance(batch.targets, Tensor):
            return []
        maps = batch.targets.as_subclass(Tensor)
        maps = maps.reshape(len(maps), *maps.shape[-2:])
        ids = batch.ids or tuple(str(number) for number in range(len(maps)))
        return [Prediction(name, (), map=one) for name, one in zip(ids, maps, strict=True)]


@dataclass(frozen=True)
class Window:
    """Which part of what the model is given shows which part of the original image.

    Attributes:
        shown: top, left, bottom, right in pixels of what the model is given.
        covers: the same of the original image.
        original: height and width of that image.
    """

    shown: tuple[int, int, int, int]
    covers: tuple[int, int, int, int]
    original: tuple[int, int]

    def as_target(self) -> dict[str, tuple[int, ...]]:
        """What a sample for prediction carries as its target."""
        return {"shown": self.shown, "covers": self.covers, "original": self.original}

    def restored(self, values: Tensor) -> tuple[Tensor, tuple[slice, slice]]:
        """Values (K, h, w) of what the model was given, at the original's resolution, and the part that they are of."""
        top, left, bottom, right = self.shown
        above, before, below, behind = self.covers
        size = (below - above, behind - before)
        part = values[None, :, top:bottom, left:right]
        if tuple(part.shape[2:]) != size:
            part = functional.interpolate(part, size=size, mode="bilinear", align_corners=False)
        return part[0], (slice(above, below), slice(before, behind))


def windows_of(batch: Batch) -> list[Window] | None:
    """The windows of the samples of a batch for prediction; None where it carries none."""
    targets = batch.targets
    if not isinstance(targets, Mapping) or set(targets) != {"shown", "covers", "original"}:
        return None
    return [Window(*one) for one in zip(targets["shown"], targets["covers"], targets["original"], strict=True)]


def window_of(transform: Callable[..., Any], original: tuple[int, int]) -> Window:
    """Which part of an image of this size a transform shows, for those that resize, crop and pad without chance."""
    height, width = original
    whole = (0, 0, height, width)
    if isinstance(transform, (MapTransform, MapsTransform)):
        made = original
        for one in transform.steps:
            if isinstance(one, FitTo):
                made = one.size if one.fit == "squash" else within(made, one.size)
            elif isinstance(one, ShorterSide):
                made = with_shorter_side(made, one.lengths[0], one.longest)
        return Window((0, 0, *made), whole, original)
    scaled, size = original, original
    for step in transform.transforms if isinstance(transform, v2.Compose) else ():
        if isinstance(step, ResizeTo):
            scaled = size = step.target(*size)
        elif isinstance(step, CropTo):
            size = step.size
    axes = [_axis(side, large, given) for side, large, given in zip(original, scaled, size, strict=True)]
    (top, bottom, above, below), (left, right, before, behind) = axes
    return Window((top, left, bottom, right), (above, before, below, behind), original)


def _axis(side: int, scaled: int, given: int) -> tuple[int, int, int, int]:
    """First and last pixel that are shown, and the original's that they cover, where `scaled` is cropped to `given`.

    Crop and bars are in the centre, placed as torchvision places them.
    """
    if scaled <= given:
        first = (given - scaled) // 2
        return first, first + scaled, 0, side
    cut = round((scaled - given) / 2.0)
    share = side / scaled
    start = min(side - 1, round(cut * share))
    return 0, given, start, max(start + 1, min(side, round((cut + given) * share)))


def _whole(side: int) -> int:
    return math.ceil(side / SIDES) * SIDES


def _filled(values: Tensor, size: tuple[int, int], fill: float) -> Tensor:
    """(..., H, W) with `fill` at the right and bottom."""
    if tuple(values.shape[-2:]) == size:
        return values
    made = values.new_full((*values.shape[:-2], *size), fill)
    made[..., : values.shape[-2], : values.shape[-1]] = values
    return made


def _filled_map(sample: Sample, size: tuple[int, int], fill: float) -> Any:
    """The target with `fill` beyond the image, where it is a map of the image's size; anything else as it is."""
    target = sample.target
    if isinstance(target, Tensor) and target.dim() >= 2 and target.shape[-2:] == sample.input.shape[-2:]:
        plain = target.as_subclass(torch.Tensor)
        # Eight-bit maps have no room for every value.
        return _filled(plain if plain.is_floating_point() else plain.long(), size, fill)
    return target
