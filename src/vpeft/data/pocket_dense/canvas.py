"""A picture that is put together from patches, of which each remembers which pixels it still shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpeft.data.pocket.drawing import Field
from vpeft.data.pocket_dense.dense_set import SIDE


@dataclass(frozen=True)
class Patch:
    """A rectangle of an object: its top left pixel, how much of each pixel it covers, its colour and its depth.

    Attributes:
        top, left: the pixel of the first cell; the rectangle lies inside the picture.
        cover: (h, w) in [0, 1].
        ink: (h, w, 3) in [0, 1], or one colour (3,).
        depth: (h, w) in metres, where the set has depth.
        normal: (h, w, 3), where the set has surfaces; see `scenes`.
    """

    top: int
    left: int
    cover: Field
    ink: Field
    depth: Field | None = None
    normal: Field | None = None

    @property
    def place(self) -> tuple[slice, slice]:
        """The rows and columns of the picture."""
        height, width = self.cover.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The pixels (h, w) that count as the object's: those it covers by half or more."""
        found: NDArray[np.bool_] = self.cover >= 0.5
        return found


def window(x0: float, y0: float, x1: float, y1: float) -> tuple[int, int, int, int]:
    """The smallest whole pixels (top, left, bottom, right) around a rectangle, inside the picture."""
    top, left = int(max(np.floor(y0), 0)), int(max(np.floor(x0), 0))
    return top, left, int(min(np.ceil(y1), SIDE)), int(min(np.ceil(x1), SIDE))


def visible(patches: Sequence[Patch]) -> NDArray[np.uint8]:
    """Which patch is seen at each pixel (128, 128): number k + 1 for patch k, 0 for none; later ones hide earlier."""
    seen = np.zeros((SIDE, SIDE), np.uint8)
    for number, patch in enumerate(patches, 1):
        seen[patch.place][patch.mask] = number
    return seen


def all_seen(patches: Sequence[Patch], least_share: float, least_pixels: int) -> list[Patch]:
    """The patches without those of which others hide too much.

    Of the patches that show less than `least_share` of their pixels, or fewer than `least_pixels`, the one that shows
    the smallest share is left out, until none is left that is too well hidden.
    """
    left = list(patches)
    while left:
        seen = np.bincount(visible(left).ravel(), minlength=len(left) + 1)[1:]
        whole = np.array([max(int(patch.mask.sum()), 1) for patch in left])
        poor = (seen < least_pixels) | (seen < least_share * whole)
        if not poor.any():
            break
        worst = int(np.argmin(np.where(poor, seen / whole, np.inf)))
        del left[worst]
    return left


def paste(picture: Field, patch: Patch) -> None:
    """Paint a patch over `picture` (128, 128, 3), in place."""
    under = picture[patch.place]
    under += patch.cover[..., None] * (patch.ink - under)


def resample(image: Field, top: float, left: float, height: float, width: float) -> Field:
    """A rectangle of `image` (H, W, 3) brought to 128 x 128 by linear interpolation along each axis."""
    rows = _between(top, height, image.shape[0])
    columns = _between(left, width, image.shape[1])
    lines = image[rows[0]] * (1 - rows[2])[:, None, None] + image[rows[1]] * rows[2][:, None, None]
    found: Field = lines[:, columns[0]] * (1 - columns[2])[:, None] + lines[:, columns[1]] * columns[2][:, None]
    return found


def _between(start: float, length: float, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Field]:
    """For each of 128 pixels over `length` cells from `start`: the two nearest cells, and the share of the second."""
    where = np.clip(start + (np.arange(SIDE) + 0.5) * length / SIDE - 0.5, 0, count - 1)
    first = np.minimum(np.floor(where).astype(np.intp), max(count - 2, 0))
    return first, np.minimum(first + 1, count - 1), where - first
