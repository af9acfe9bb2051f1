"""Augmentation as named policies: functions from a `Fit` to the steps between picture and tensor.

Adding one is adding a decorated function here. All of them draw from torch's generator alone, which `ImageSet` seeds,
and move a mask along with its image: pixels that come from outside the image are 255 in the mask, which does not count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import Mask

from vpeft.data.on_pixels import IGNORED
from vpeft.data.problems import DataError
from vpeft.data.steps import Fit, height_and_width, nearest_resized
from vpeft.errors import VpeftError, nearest

Policy = Callable[[Fit], list[nn.Module]]


class UnknownPolicy(VpeftError):
    """There is no augmentation policy of this name."""


_POLICIES: dict[str, Policy] = {}


def policy(function: Policy) -> Policy:
    """Decorator: make an augmentation policy known by its function's name."""
    _POLICIES[function.__name__] = function
    return function


def policies() -> dict[str, str]:
    """All policies: name and what it does."""
    return {name: (function.__doc__ or "").strip() for name, function in sorted(_POLICIES.items())}


def policy_named(name: str) -> Policy:
    """The policy of this name; raises `UnknownPolicy` with the nearest ones."""
    if name not in _POLICIES:
        raise UnknownPolicy(f"There is no augmentation policy {name!r}. {nearest(name, _POLICIES)}")
    return _POLICIES[name]


@policy
def none(fit: Fit) -> list[nn.Module]:
    """No augmentation: training images are treated as test images (the rule of VTAB-1k)."""
    return fit.steps()


@policy
def flip(fit: Fit) -> list[nn.Module]:
    """Mirrored left to right half of the time."""
    return [*fit.steps(), v2.RandomHorizontalFlip()]


@policy
def simple(fit: Fit) -> list[nn.Module]:
    """Resized to 8/7 of the size, a random crop of the size, mirrored half of the time (VPT on FGVC: 256 -> 224)."""
    crop = v2.RandomCrop(fit.size, pad_if_needed=True, fill={Mask: IGNORED, "others": fit.fill})
    return [fit.resized(crop_pct=7 / 8), crop, v2.RandomHorizontalFlip()]


@policy
def crop(fit: Fit) -> list[nn.Module]:
    """A random crop of 8 % to 100 % of the area, resized, mirrored half of the time (ImageNet training)."""
    return [_random_crop(fit, 0.08), v2.RandomHorizontalFlip()]


@policy
def wide(fit: Fit) -> list[nn.Module]:
    """A random crop of 5 % to 100 % of the area, resized, mirrored half of the time (LAMDA-PILOT)."""
    return [_random_crop(fit, 0.05), v2.RandomHorizontalFlip()]


@policy
def gentle(fit: Fit) -> list[nn.Module]:
    """A random crop of 70 % to 100 % of the area, resized; never mirrored (digits, text, signs)."""
    return [_random_crop(fit, 0.7)]


@policy
def corners(fit: Fit) -> list[nn.Module]:
    """A crop at a corner or the middle, its sides 100, 87.5, 75 or 66 % of the shorter side (TSN); never mirrored."""
    return [CornerCrop(fit.size, fit.mode)]


@policy
def randaugment(fit: Fit) -> list[nn.Module]:
    """`crop`, then two random operations of magnitude 9 (RandAugment, Cubuk et al. 2019)."""
    _only_colour(fit, "randaugment")
    return [*crop(fit), RandomOperations(2, 9, interpolation=fit.mode_of_warps)]


@policy
def randaugment_whole(fit: Fit) -> list[nn.Module]:
    """The whole image, mirrored half of the time, then two random operations of magnitude 9 (the survey on VTAB-1k)."""
    _only_colour(fit, "randaugment_whole")
    return [*fit.steps(), v2.RandomHorizontalFlip(), RandomOperations(2, 9, interpolation=fit.mode_of_warps)]


@policy
def trivial(fit: Fit) -> list[nn.Module]:
    """`crop`, then one random operation of random strength (TrivialAugment Wide, Müller and Hutter 2021)."""
    _only_colour(fit, "trivial")
    return [*crop(fit), RandomOperation(interpolation=fit.mode_of_warps)]


def _random_crop(fit: Fit, least: float) -> nn.Module:
    return RandomCropResized(fit.size, scale=(least, 1.0), interpolation=fit.mode, antialias=True)


def _only_colour(fit: Fit, name: str) -> None:
    if len(fit.mean) != 3:
        raise DataError(
            f"The policy {name!r} changes colours, and images of {len(fit.mean)} channels have none. "
            "Take flip, simple, crop or gentle."
        )


class RandomCropResized(v2.RandomResizedCrop):  # type: ignore[misc]
    """torchvision's, with masks resized by their nearest centres, so that they stay on the pixels of the image."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, Mask):
            return super().transform(inpt, params)
        return nearest_resized(functional.crop(inpt, **params), (int(self.size[0]), int(self.size[1])))


class CornerCrop(v2.Transform):  # type: ignore[misc]
    """A crop at one of the corners or in the middle, resized (Wang et al., "Temporal Segment Networks", 2016).

    Height and width are drawn from four shares of the image's shorter side, next to each other at most, so that the
    aspect ratio changes a little.
    """

    SHARES = (1.0, 0.875, 0.75, 0.66)
    PLACES = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))  # of the space left, down and across

    def __init__(self, size: tuple[int, int], mode: v2.InterpolationMode) -> None:
        super().__init__()
        self.size, self.mode = size, mode

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = height_and_width(flat_inputs[0])
        count = len(self.SHARES)
        pairs = [(a, b) for a in range(count) for b in range(count) if abs(a - b) <= 1]
        down, across = pairs[int(torch.randint(len(pairs), ()))]
        sides = [max(1, int(min(height, width) * self.SHARES[number])) for number in (down, across)]
        place = self.PLACES[int(torch.randint(len(self.PLACES), ()))]
        top, left = round((height - sides[0]) * place[0]), round((width - sides[1]) * place[1])
        return {"top": top, "left": left, "height": sides[0], "width": sides[1]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        cut = functional.crop(inpt, **params)
        if isinstance(inpt, Mask):
            return nearest_resized(cut, self.size)
        return functional.resize(cut, list(self.size), self.mode, antialias=True)


class _AlongWithMask:
    """Random operations of torchvision that also act on a mask where they move pixels."""

    mask: Any = None

    def forward(self, *parts: Any) -> Any:
        if len(parts) == 1:
            return super().forward(*parts)  # type: ignore[misc]
        image, mask = parts
        follower = copy.copy(self)  # keeps the mask of this call alone
        follower.mask = mask
        made = super(_AlongWithMask, follower).forward(image)  # type: ignore[misc]
        return made, follower.mask

    def _apply_image_or_video_transform(
        self, image: Any, transform_id: str, magnitude: float, interpolation: Any, fill: Any
    ) -> Any:
        move = super()._apply_image_or_video_transform  # type: ignore[misc]
        if self.mask is not None and transform_id in _MOVING:
            ignored = {Mask: IGNORED}
            self.mask = move(self.mask, transform_id, magnitude, v2.InterpolationMode.NEAREST, ignored)
        return move(image, transform_id, magnitude, interpolation, fill)


# Of torchvision's operations, those that move pixels; the others change colours.
_MOVING = frozenset({"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"})


class RandomOperations(_AlongWithMask, v2.RandAugment):  # type: ignore[misc]
    """RandAugment on an image, or on an image and its mask."""


class RandomOperation(_AlongWithMask, v2.TrivialAugmentWide):  # type: ignore[misc]
    """TrivialAugment on an image, or on an image and its mask."""
