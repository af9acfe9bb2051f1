"""Augmentation as named policies: functions from a `Preprocessing` to the steps between picture and tensor.

Adding one is adding a decorated function here. All of them draw from torch's generator alone, which `ImageSet` seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn
from torchvision.transforms import v2

from vpeft.errors import VpeftError, nearest

if TYPE_CHECKING:
    from vpeft.data.preprocessing import Preprocessing

Policy = Callable[["Preprocessing"], list[nn.Module]]


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
def none(preprocessing: Preprocessing) -> list[nn.Module]:
    """No augmentation: training images are treated as test images (the rule of VTAB-1k)."""
    return preprocessing.fitted()


@policy
def flip(preprocessing: Preprocessing) -> list[nn.Module]:
    """Mirrored left to right half of the time."""
    return [*preprocessing.fitted(), v2.RandomHorizontalFlip()]


@policy
def simple(preprocessing: Preprocessing) -> list[nn.Module]:
    """Resized to 8/7 of the size, a random crop of the size, mirrored half of the time (VPT on FGVC: 256 -> 224)."""
    larger = preprocessing.model_copy(update={"crop_pct": 7 / 8})
    resize = larger.fitted()[0]
    fill = tuple(round(255 * value) for value in preprocessing.mean)
    crop = v2.RandomCrop(preprocessing.size, pad_if_needed=True, fill=fill)
    return [resize, crop, v2.RandomHorizontalFlip()]


@policy
def crop(preprocessing: Preprocessing) -> list[nn.Module]:
    """A random crop of 8 % to 100 % of the area, resized, mirrored half of the time (ImageNet training)."""
    return [_random_crop(preprocessing, 0.08), v2.RandomHorizontalFlip()]


@policy
def gentle(preprocessing: Preprocessing) -> list[nn.Module]:
    """A random crop of 70 % to 100 % of the area, resized; never mirrored (digits, text, signs)."""
    return [_random_crop(preprocessing, 0.7)]


@policy
def randaugment(preprocessing: Preprocessing) -> list[nn.Module]:
    """`crop`, then two random operations of magnitude 9 (RandAugment, Cubuk et al. 2019)."""
    return [*crop(preprocessing), v2.RandAugment(2, 9, interpolation=preprocessing.mode_of_warps)]


@policy
def trivial(preprocessing: Preprocessing) -> list[nn.Module]:
    """`crop`, then one random operation of random strength (TrivialAugment Wide, Müller and Hutter 2021)."""
    return [*crop(preprocessing), v2.TrivialAugmentWide(interpolation=preprocessing.mode_of_warps)]


def _random_crop(preprocessing: Preprocessing, least: float) -> nn.Module:
    cropping: nn.Module = v2.RandomResizedCrop(
        preprocessing.size, scale=(least, 1.0), interpolation=preprocessing.mode, antialias=True
    )
    return cropping
