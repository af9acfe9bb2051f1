"""Transforms of dense prediction: an image changes together with its boxes, masks, class map or depth map.

Protocols: the image is fitted to (H, W), or its shorter side gets a length under a limit for the longer one. Training
adds named changes, joined by +, such as "flip+photometric". All numbers come from torch's generator. Bars are added at
the right and bottom, after the normalisation, and are 0 in the image; they are 255 in a class map and NaN in depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomPhotometricDistort, RandomResizedCrop, functional
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from vpeft.data.augmentation import UnknownPolicy
from vpeft.data.objects import ImageObjects
from vpeft.data.on_pixels import IGNORED
from vpeft.data.preprocessing import AsPicture, Preprocessing
from vpeft.data.problems import DataError
from vpeft.data.steps import height_and_width
from vpeft.errors import nearest

Fitting = Literal["longer", "squash"]
Size = tuple[int, int]

# COCO's multi-scale training of DETR, Swin and V-PETL: half of the time, a crop whose sides are from 384 to 600 pixels
# out of the image at one of these shorter sides, where the shorter side of the result is 800; in proportion otherwise.
CROP_FIRST_RESIZED = (400, 500, 600)
CROP_SIDES = (384, 600)
CROP_REFERENCE = 800
# The large scale jitter of Ghiasi et al. 2021, Simple Copy-Paste.
JITTER = (0.1, 2.0)
# The share of the image that a random crop shows, and its aspect ratio; TorchVision's SSD draws from 0.3.
CROP_SHARE = (0.3, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
# MMSegmentation's rule for ADE20K: no class fills more than this share of a crop, if ten tries find such a crop.
SCALES = (0.5, 2.0)
CATEGORY_SHARE = 0.75
CROP_TRIES = 10


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and what is drawn on it, all of one size (H, W).

    Attributes:
        image: a PIL image, or a float tensor (C, H, W).
        boxes: (N, 4) as corners.
        masks: uint8 (N, H, W).
        map: class numbers int64 (H, W), or depth float32 (H, W); several maps float32 (C, H, W).
        kept: for each remaining object, its place among the objects at the start.
        mirrored: whether it is a mirror image by now, which turns directions round.
        angle: by how many degrees it was turned clockwise by now.
        zoom: how much larger it was made without being cut down again, which brings what is seen nearer.
    """

    image: Any
    boxes: BoundingBoxes | None = None
    masks: Tensor | None = None
    map: Tensor | None = None
    kept: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    mirrored: bool = False
    angle: float = 0.0
    zoom: float = 1.0

    @property
    def size(self) -> Size:
        """(H, W)."""
        return height_and_width(self.image)

    def resized(self, size: Size, mode: InterpolationMode) -> Scene:
        """All of it brought to `size`; masks and maps take the pixel whose centre is nearest."""
        if size == self.size:
            return self
        return replace(
            self,
            image=functional.resize(self.image, list(size), mode),
            boxes=None if self.boxes is None else functional.resize(self.boxes, list(size)),
            masks=None if self.masks is None else _nearest(self.masks, size),
            map=None if self.map is None else _nearest(self.map, size),
        )

    def cropped(self, top: int, left: int, height: int, width: int) -> Scene:
        """The part of it that a window shows; objects of which it shows less than a pixel are removed."""
        if (top, left) == (0, 0) and (height, width) == self.size:
            return self
        boxes, masks, kept = self.boxes, self.masks, self.kept
        if masks is not None:
            masks = masks[:, top : top + height, left : left + width]
        if boxes is not None:
            shifted = boxes.as_subclass(Tensor) - torch.tensor([left, top, left, top], dtype=boxes.dtype)
            cut = _inside(shifted, (height, width))
            sides = cut[:, 2:] - cut[:, :2]
            # An object that was smaller than a pixel before the crop stays where none of it is lost.
            seen = (sides >= torch.minimum(torch.ones(()), shifted[:, 2:] - shifted[:, :2])).all(1)
            if masks is not None:
                seen &= (masks != 0).flatten(1).any(1)
                masks = masks[seen]
            boxes, kept = corners(cut[seen], (height, width)), kept[seen]
        return replace(
            self,
            image=functional.crop(self.image, top, left, height, width),
            boxes=boxes,
            masks=masks,
            map=None if self.map is None else self.map[..., top : top + height, left : left + width],
            kept=kept,
        )

    def flipped(self) -> Scene:
        """Mirrored left to right."""
        return replace(
            self,
            image=functional.horizontal_flip(self.image),
            boxes=None if self.boxes is None else functional.horizontal_flip(self.boxes),
            masks=None if self.masks is None else self.masks.flip(-1),
            map=None if self.map is None else self.map.flip(-1),
            mirrored=not self.mirrored,
            angle=-self.angle,
        )

    def turned(self, angle: float, zoom: float) -> Scene:
        """Turned clockwise by `angle` degrees and made `zoom` times larger about the centre, at the same size.

        Where nothing is shown the image is 0, class numbers are 255 and real numbers NaN. Maps take the nearest pixel.

        Raises:
            DataError: there are objects.
        """
        if self.boxes is not None:
            raise DataError("The changes 'turn' and 'zoom' are for maps, and boxes of objects do not turn.")

        def moved(what: Any, mode: InterpolationMode) -> Any:
            return functional.affine(what, angle, [0, 0], zoom, [0.0, 0.0], interpolation=mode, fill=0)

        drawn = self.map
        if drawn is not None:
            planes = drawn.double().reshape(-1, *drawn.shape[-2:])
            # The filter multiplies with 0, which not-a-number survives: where it is known is moved by itself.
            known = torch.cat([torch.isfinite(planes), torch.ones_like(planes[:1], dtype=torch.bool)])
            kept = moved(known.double(), InterpolationMode.NEAREST) > 0.5
            values = moved(torch.nan_to_num(planes), InterpolationMode.NEAREST)
            unknown = torch.nan if drawn.is_floating_point() else float(IGNORED)
            drawn = torch.where(kept[:-1] & kept[-1:], values, unknown).to(drawn.dtype).reshape(drawn.shape)
        return replace(
            self,
            image=moved(self.image, InterpolationMode.BILINEAR),
            map=drawn,
            angle=self.angle + angle,
            zoom=self.zoom * zoom,
        )


def corners(boxes: Tensor, size: Size) -> BoundingBoxes:
    """Boxes (N, 4) left, top, right, bottom on an image of `size`, as torchvision's type."""
    return BoundingBoxes(boxes.reshape(-1, 4), format=BoundingBoxFormat.XYXY, canvas_size=size)


def _inside(boxes: Tensor, size: Size) -> Tensor:
    """Boxes (N, 4) cut at the border of an image of `size`."""
    limits = torch.tensor([size[1], size[0], size[1], size[0]], dtype=boxes.dtype)
    return boxes.clamp(min=0).minimum(limits)


def _nearest(maps: Tensor, size: Size) -> Tensor:
    """Maps (H, W) or (N, H, W) of any type at another size, each pixel from the one whose centre is nearest."""
    if not maps.numel():
        return maps.new_zeros((*maps.shape[:-2], *size))
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    # Exact for floats and bytes; int64 class numbers are small.
    wide = flat if flat.dtype in (torch.uint8, torch.float32) else flat.double()
    made = torch.nn.functional.interpolate(wide, size, mode="nearest-exact")
    return made.to(maps.dtype).reshape(*maps.shape[:-2], *size)


# -- steps -------------------------------------------------------------------------------------------------------------

Step = Callable[[Scene], Scene]


@dataclass(frozen=True)
class FitTo:
    """The image at `size`, both sides ("squash"), or inside of it with its aspect ratio kept ("longer")."""

    size: Size
    fit: Fitting
    mode: InterpolationMode

    def __call__(self, scene: Scene) -> Scene:
        return scene.resized(self.size if self.fit == "squash" else within(scene.size, self.size), self.mode)


@dataclass(frozen=True)
class ShorterSide:
    """The shorter side at one of `lengths`, drawn anew each time, the longer one at most `longest`; ratio kept."""

    lengths: tuple[int, ...]
    longest: int | None
    mode: InterpolationMode

    def __call__(self, scene: Scene) -> Scene:
        length = self.lengths[_below(len(self.lengths))] if len(self.lengths) > 1 else self.lengths[0]
        return scene.resized(with_shorter_side(scene.size, length, self.longest), self.mode)


@dataclass(frozen=True)
class Flip:
    """Mirrored left to right half of the time."""

    def __call__(self, scene: Scene) -> Scene:
        return scene.flipped() if _uniform(0.0, 1.0) < 0.5 else scene


@dataclass(frozen=True)
class TurnAndZoom:
    """Turned by an angle from -`degrees` to `degrees`, and made larger by a factor from `scales`."""

    degrees: float
    scales: tuple[float, ...]
    between: bool

    def __call__(self, scene: Scene) -> Scene:
        angle = _uniform(-self.degrees, self.degrees) if self.degrees else 0.0
        zoom = _uniform(self.scales[0], self.scales[-1]) if self.between else self.scales[_below(len(self.scales))]
        return scene.turned(angle, zoom)


@dataclass(frozen=True)
class Photometric:
    """Brightness, contrast, saturation, hue and the order of channels, each half of the time (SSD, 1512.02325)."""

    def __call__(self, scene: Scene) -> Scene:
        return replace(scene, image=RandomPhotometricDistort()(scene.image))


@dataclass(frozen=True)
class ResizedCrop:
    """A random window of 30 % to 100 % of the area, resized to `size`."""

    size: Size
    mode: InterpolationMode

    def __call__(self, scene: Scene) -> Scene:
        window = RandomResizedCrop(self.size, CROP_SHARE, CROP_RATIO).make_params([scene.image])
        cut = scene.cropped(window["top"], window["left"], window["height"], window["width"])
        return cut.resized(self.size, self.mode)


@dataclass(frozen=True)
class ScaleJitter:
    """The image at 0.1 to 2 times the scale at which it fits into `size`, and a random window of `size` of it."""

    size: Size
    mode: InterpolationMode

    def __call__(self, scene: Scene) -> Scene:
        factor = _uniform(*JITTER)
        limits = (max(1, round(self.size[0] * factor)), max(1, round(self.size[1] * factor)))
        return _window(scene.resized(within(scene.size, limits), self.mode), self.size)


@dataclass(frozen=True)
class CropFirst:
    """Half of the time a random window at a smaller scale before the shorter side gets its length (DETR)."""

    reference: int
    mode: InterpolationMode

    def __call__(self, scene: Scene) -> Scene:
        if _uniform(0.0, 1.0) < 0.5:
            return scene
        share = self.reference / CROP_REFERENCE
        length = max(1, round(share * CROP_FIRST_RESIZED[_below(len(CROP_FIRST_RESIZED))]))
        small = scene.resized(with_shorter_side(scene.size, length, None), self.mode)
        low, high = (max(1, round(share * side)) for side in CROP_SIDES)
        sides = [min(side, low) + _below(min(side, high) - min(side, low) + 1) for side in small.size]
        return _window(small, (sides[0], sides[1]))


@dataclass(frozen=True)
class ScaledCrop:
    """The image at 0.5 to 2 times its scale in the test, and a window of `size` in which no class fills over 75 %."""

    size: Size
    longest: int | None
    mode: InterpolationMode

    def __call__(self, scene: Scene) -> Scene:
        factor = _uniform(*SCALES)
        length = max(1, round(min(self.size) * factor))
        longest = None if self.longest is None else max(1, round(self.longest * factor))
        large = scene.resized(with_shorter_side(scene.size, length, longest), self.mode)
        made = _window(large, self.size)
        for _ in range(CROP_TRIES - 1):
            if made.map is None or made.map.is_floating_point() or _fits(made.map):
                break
            made = _window(large, self.size)
        return made


def _fits(numbers: Tensor) -> bool:
    """Whether a class map has two classes and none of them fills more than 75 % of what counts."""
    counts = torch.bincount(numbers[numbers != IGNORED])
    return int((counts > 0).sum()) > 1 and float(counts.max() / counts.sum()) < CATEGORY_SHARE


def _window(scene: Scene, size: Size) -> Scene:
    """A random window of `size`, or all of a side that is shorter."""
    height, width = (min(have, want) for have, want in zip(scene.size, size, strict=True))
    top, left = _below(scene.size[0] - height + 1), _below(scene.size[1] - width + 1)
    return scene.cropped(top, left, height, width)


def within(size: Size, limits: Size) -> Size:
    """The largest size (H, W) inside `limits` with the ratio of `size`."""
    share = min(limit / side for limit, side in zip(limits, size, strict=True))
    height, width = (min(limit, max(1, int(side * share + 0.5))) for limit, side in zip(limits, size, strict=True))
    return height, width


def with_shorter_side(size: Size, length: int, longest: int | None) -> Size:
    """`size` (H, W) with its shorter side at `length`, or less where the longer one would pass `longest`."""
    share = length / min(size)
    if longest is not None:
        share = min(share, longest / max(size))
    return max(1, int(size[0] * share + 0.5)), max(1, int(size[1] * share + 0.5))


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def _below(count: int) -> int:
    """A random whole number from 0 to count - 1."""
    return int(torch.randint(count, ()))


# -- protocols ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """How large images become: fitted to `size`, or their shorter side at one of `shortest`, at most `longest` long."""

    size: Size | None
    shortest: tuple[int, ...]
    longest: int | None
    fit: Fitting
    mode: InterpolationMode

    def plain(self, training: bool) -> list[Step]:
        """The step of the protocol; outside of training the largest of several lengths."""
        if self.size is not None:
            return [FitTo(self.size, self.fit, self.mode)]
        return [ShorterSide(self.shortest if training else (max(self.shortest),), self.longest, self.mode)]


Change = Callable[[Protocol], list[Step]]
# Changes of the image as it is, before the plain step; those that take its place; and those that follow it.
_FIRST: dict[str, Change] = {}
_SCALING: dict[str, Change] = {}
_FOLLOWING: dict[str, Change] = {}


def _first(change: Change) -> Change:
    _FIRST[change.__name__] = change
    return change


def _scaling(change: Change) -> Change:
    _SCALING[change.__name__] = change
    return change


def _following(change: Change) -> Change:
    _FOLLOWING[change.__name__] = change
    return change


@_following
def flip(protocol: Protocol) -> list[Step]:
    """Mirrored left to right half of the time."""
    return [Flip()]


@_following
def photometric(protocol: Protocol) -> list[Step]:
    """Brightness, contrast, saturation, hue and the order of channels, each half of the time."""
    return [Photometric()]


@_first
def turn(protocol: Protocol) -> list[Step]:
    """Turned by up to 20 degrees either way and scaled by 0.75 to 1.25 about the centre (PASCAL-Context MT)."""
    return [TurnAndZoom(20.0, (0.75, 1.25), True)]


@_first
def zoom(protocol: Protocol) -> list[Step]:
    """Scaled by 1, 1.2 or 1.5 about the centre (NYUD MT)."""
    return [TurnAndZoom(0.0, (1.0, 1.2, 1.5), False)]


@_scaling
def crop(protocol: Protocol) -> list[Step]:
    """A random window: of 30 % to 100 % of the area at `size`; at shorter sides, DETR's crop half of the time."""
    if protocol.size is not None:
        return [ResizedCrop(protocol.size, protocol.mode)]
    return [CropFirst(max(protocol.shortest), protocol.mode), *protocol.plain(True)]


@_scaling
def scale_jitter(protocol: Protocol) -> list[Step]:
    """0.1 to 2 times the scale at which the image fits into `size`, and a random window of `size` (LSJ)."""
    return [ScaleJitter(_stated(protocol, "scale_jitter"), protocol.mode)]


@_scaling
def scaled_crop(protocol: Protocol) -> list[Step]:
    """A window of `size` at 0.5 to 2 times the scale, in which no class fills more than 75 % (ADE20K)."""
    return [ScaledCrop(_stated(protocol, "scaled_crop"), protocol.longest, protocol.mode)]


def _stated(protocol: Protocol, name: str) -> Size:
    if protocol.size is None:
        raise DataError(f"The change {name!r} needs the size (H, W) of its window: give size instead of shortest.")
    return protocol.size


def changes() -> dict[str, str]:
    """Every change that `augment` may name, and what it does."""
    known = {**_FIRST, **_SCALING, **_FOLLOWING}
    said = {name: (change.__doc__ or "").strip() for name, change in known.items()}
    return {"none": "No change: training images are treated as test images.", **said}


def _steps(protocol: Protocol, training: bool, augment: str, channels: int) -> tuple[Step, ...]:
    if not training:
        return tuple(protocol.plain(False))
    words = [word.strip() for word in augment.split("+") if word.strip()]
    for word in words:
        if word not in changes():
            raise UnknownPolicy(
                f"There is no change {word!r} of images with objects or maps. {nearest(word, changes())} Several are"
                " joined by +."
            )
    scaling = [word for word in words if word in _SCALING]
    if len(scaling) > 1:
        raise DataError(f"The changes {' and '.join(scaling)} both choose the scale of an image; name one of them.")
    if "photometric" in words and channels != 3:
        raise DataError(f"The change 'photometric' is for colours, and these images have {channels} channels.")
    first = [step for word in dict.fromkeys(words) if word in _FIRST for step in _FIRST[word](protocol)]
    steps = first + (_SCALING[scaling[0]](protocol) if scaling else protocol.plain(True))
    for word in dict.fromkeys(words):
        steps += _FOLLOWING[word](protocol) if word in _FOLLOWING else []
    return tuple(steps)


def _protocol(
    preprocessing: Preprocessing,
    size: int | Size | None,
    shortest: int | Sequence[int] | None,
    longest: int | None,
    fit: Fitting | None,
) -> Protocol:
    if size is not None and shortest is not None:
        raise DataError("An image is fitted to size, or its shorter side gets the length shortest: give one of both.")
    whole = (size, size) if isinstance(size, int) else size
    lengths = () if shortest is None else (shortest,) if isinstance(shortest, int) else tuple(shortest)
    if whole is None and not lengths:
        whole = preprocessing.size
    if any(side < 1 for side in (*(whole or ()), *lengths, *(() if longest is None else (longest,)))):
        raise DataError("The sides of an image are whole numbers of pixels above 0.")
    chosen = fit or ("squash" if preprocessing.resize == "squash" else "longer")
    return Protocol(whole, lengths, longest, chosen, preprocessing.fit.mode)


@dataclass(frozen=True)
class _Dense:
    """What the transforms share: the steps, the normalisation, and the size to which bars fill up."""

    steps: tuple[Step, ...]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padded: Size | None

    def _started(self, image: Any) -> Any:
        return AsPicture(self.channels)(image)

    def _changed(self, scene: Scene) -> Scene:
        for step in self.steps:
            scene = step(scene)
        return scene

    def _finished(self, image: Any) -> Tensor:
        """The normalised image, with bars of 0 at the right and bottom."""
        pixels = functional.to_image(image) if isinstance(image, Image.Image) else image.as_subclass(Tensor)
        plain = functional.to_dtype(pixels, torch.float32, scale=True).as_subclass(Tensor)
        normal = functional.normalize(plain, list(self.mean), list(self.std))
        return self._filled(normal, 0.0)

    def _filled(self, values: Tensor, fill: float) -> Tensor:
        if self.padded is None or tuple(values.shape[-2:]) == self.padded:
            return values
        made = values.new_full((*values.shape[:-2], *self.padded), fill)
        made[..., : values.shape[-2], : values.shape[-1]] = values
        return made


@dataclass(frozen=True)
class DetectionTransform(_Dense):
    """An image of any size and its objects -> the normalised image, float (C, H, W), and a dict.

    The dict holds `boxes` float32 (N, 4) left, top, right, bottom; `labels` int64 (N,); `crowd` bool (N,); `masks`
    uint8 (N, H, W) where they are wanted and known; `area` (N,) where the source states areas, in pixels of the
    original image; `size` (h, w), the part of (H, W) that is no bar; `original`
    (H, W), the image's own size. An image alone gives the normalised image alone.
    """

    masks: bool = True

    def __call__(self, image: Any, objects: ImageObjects | Mapping[str, Any] | None = None) -> Any:
        """`objects` are `ImageObjects`, or a mapping with `boxes`, `labels` and perhaps `crowd` and `masks`."""
        picture = self._started(image)
        if objects is None:
            return self._finished(self._changed(Scene(picture)).image)
        original = height_and_width(picture)
        boxes, labels, crowd, masks = _parts(objects, original, self.masks)
        scene = Scene(picture, corners(boxes, original), masks, kept=torch.arange(len(labels)))
        scene = self._changed(scene)
        assert scene.boxes is not None  # as given
        target: dict[str, Any] = {
            "boxes": _inside(scene.boxes.as_subclass(Tensor), scene.size),  # rounding may put them a bit over it
            "labels": labels[scene.kept],
            "crowd": crowd[scene.kept],
        }
        if scene.masks is not None:
            target["masks"] = self._filled(scene.masks, 0)
        if isinstance(objects, ImageObjects) and objects.areas is not None:
            target["area"] = objects.areas[scene.kept]
        target["size"], target["original"] = scene.size, original
        return self._finished(scene.image), target


def _parts(
    objects: ImageObjects | Mapping[str, Any], size: Size, with_masks: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Boxes, labels, crowd and masks on an image of `size`; raises `DataError` where they do not fit each other."""
    masks: Tensor | None
    if isinstance(objects, ImageObjects):
        boxes, labels, crowd = objects.boxes, objects.labels, objects.crowd
        masks = objects.masks(*size) if with_masks else None
    else:
        boxes, labels = torch.as_tensor(objects["boxes"]), torch.as_tensor(objects["labels"])
        crowd = torch.as_tensor(objects.get("crowd", torch.zeros(len(labels), dtype=torch.bool)))
        given = objects.get("masks") if with_masks else None
        masks = None if given is None else torch.as_tensor(given).as_subclass(Tensor)
    boxes = boxes.as_subclass(Tensor).float().reshape(-1, 4)
    counts = {"boxes": len(boxes), "labels": len(labels), "crowd": len(crowd)}
    if masks is not None:
        counts["masks"] = len(masks)
    if len(set(counts.values())) > 1:
        raise DataError(f"The parts of one image's objects differ in number: {counts}.")
    if masks is not None and tuple(masks.shape[-2:]) != size:
        raise DataError(f"Masks of {tuple(masks.shape[-2:])} do not lie on an image of {size}, both (H, W).")
    return boxes, labels.long(), crowd.bool(), None if masks is None else masks.to(torch.uint8)


@dataclass(frozen=True)
class MapTransform(_Dense):
    """An image of any size and its map (H, W) -> the normalised image, float (C, H, W), and the map (H, W).

    Class numbers come as int64, with `fill` where there is no image; depth as float32. An image alone gives the
    normalised image alone.
    """

    fill: float = float(IGNORED)

    def __call__(self, image: Any, numbers: Any = None) -> Any:
        picture = self._started(image)
        if numbers is None:
            return self._finished(self._changed(Scene(picture)).image)
        values = torch.as_tensor(np.asarray(numbers) if isinstance(numbers, Image.Image) else numbers)
        values = values.as_subclass(Tensor).reshape(values.shape[-2:])
        if tuple(values.shape) != height_and_width(picture):
            raise DataError(f"A map of {tuple(values.shape)} does not lie on an image of {height_and_width(picture)}.")
        scene = self._changed(Scene(picture, map=values.float() if np.isnan(self.fill) else values.long()))
        assert scene.map is not None  # as given
        seen = scene.map / scene.zoom if scene.map.is_floating_point() and scene.zoom != 1 else scene.map
        return self._finished(scene.image), self._filled(seen, self.fill)


def detection_transform(
    preprocessing: Preprocessing,
    training: bool,
    size: int | Size | None = None,
    shortest: int | Sequence[int] | None = None,
    longest: int | None = None,
    augment: str = "flip",
    fit: Fitting | None = None,
    masks: bool = True,
) -> DetectionTransform:
    """The transform for images with boxes, and perhaps masks.

    Args:
        preprocessing: of the backbone: channels, interpolation, normalisation, and the size where none is given.
        training: whether `augment` acts, and several lengths are drawn from.
        size: the image is fitted to this size (H, W), or to a square of this side.
        shortest: the length of the shorter side; training draws from several, the test takes the largest.
        longest: the limit of the longer side.
        augment: changes of training images, joined by +; see `changes`.
        fit: how `size` is reached: the ratio is kept and bars are added ("longer"), or not ("squash"). The default is
            "squash" where the preprocessing says so, else "longer", so that no object is cut off.
        masks: whether masks are decoded where there are some.

    Raises:
        UnknownPolicy: `augment` names an unknown change.
        DataError: settings contradict each other.
    """
    protocol = _protocol(preprocessing, size, shortest, longest, fit)
    steps = _steps(protocol, training, augment, preprocessing.channels)
    channels, mean, std = preprocessing.channels, preprocessing.mean, preprocessing.std
    return DetectionTransform(steps, channels, mean, std, protocol.size, masks)


def semantic_transform(
    preprocessing: Preprocessing,
    training: bool,
    size: int | Size | None = None,
    shortest: int | Sequence[int] | None = None,
    longest: int | None = None,
    augment: str = "flip",
    fit: Fitting | None = None,
) -> MapTransform:
    """The transform for images with a class for each pixel; arguments as for `detection_transform`.

    ADE20K's protocol trains with size=512, longest=2048, augment="scaled_crop+flip+photometric", and tests with
    shortest=512, longest=2048.
    """
    protocol = _protocol(preprocessing, size, shortest, longest, fit)
    steps = _steps(protocol, training, augment, preprocessing.channels)
    channels, mean, std = preprocessing.channels, preprocessing.mean, preprocessing.std
    return MapTransform(steps, channels, mean, std, protocol.size)


def depth_transform(
    preprocessing: Preprocessing,
    training: bool,
    size: int | Size | None = None,
    shortest: int | Sequence[int] | None = None,
    longest: int | None = None,
    augment: str = "flip",
    fit: Fitting | None = None,
) -> MapTransform:
    """The transform for images with a depth for each pixel; arguments as for `detection_transform`.

    Depths keep their values at any scale and are never mixed with their neighbours'; bars are NaN.
    """
    protocol = _protocol(preprocessing, size, shortest, longest, fit)
    steps = _steps(protocol, training, augment, preprocessing.channels)
    channels, mean, std = preprocessing.channels, preprocessing.mean, preprocessing.std
    return MapTransform(steps, channels, mean, std, protocol.size, float("nan"))
