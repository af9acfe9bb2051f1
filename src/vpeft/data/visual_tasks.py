"""Vision as pictures in, pictures out: what a picture is turned into, each a `VisualTask`.

    mask, edges, depth, normals, saliency   the image, and that map of it painted as a picture
    denoise, inpaint                        the image with noise or a grey square, and the image

The first read the map of that kind that a data set has for each image; the others need the images alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vpeft.data.on_pixels import IGNORED
from vpeft.data.problems import DataError
from vpeft.errors import nearest

# Standard deviation of the noise of `denoise`; pictures are in [0, 1].
NOISE = 0.15
# Side of the square of `inpaint`, as a share of the picture's.
HOLE = 0.4
# Metres that `depth` paints white and black; between them the logarithm counts.
NEAR, FAR = 1.0, 40.0
# Share of an image's sides that a crop keeps.
CROP = 0.75


class Change(NamedTuple):
    """A crop of an image, left, top, right and bottom as shares of its sides, and whether it is mirrored."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0
    mirrored: bool = False

    def of(self, planes: Tensor) -> Tensor:
        """The part of (..., H, W)."""
        height, width = planes.shape[-2:]
        rows = slice(int(self.top * height), max(int(self.top * height) + 1, math.ceil(self.bottom * height)))
        columns = slice(int(self.left * width), max(int(self.left * width) + 1, math.ceil(self.right * width)))
        cut = planes[..., rows, columns]
        return cut.flip(-1) if self.mirrored else cut


def augmentation(number: int) -> Change:
    """The change of the `number`-th copy of an image: the image, its mirror image, six crops and theirs, random crops.

    Copy 0 is the image itself. The crops lie in the corners, in the middle and at a place of their own.
    """
    rest = 1 - CROP
    corners = [(0.0, 0.0), (rest, 0.0), (0.0, rest), (rest, rest), (rest / 2, rest / 2), (rest / 2, 0.0)]
    places: list[tuple[float, float, float]] = [(0.0, 0.0, 1.0), *((left, top, CROP) for left, top in corners)]
    if number >= 2 * len(places):
        generator = seeded("crop", number)
        share = CROP + rest * float(torch.rand((), generator=generator))
        left, top = ((1 - share) * torch.rand(2, generator=generator)).tolist()
        places = [(left, top, share)]
        number = int(torch.randint(2, (), generator=generator))
    left, top, share = places[number // 2]
    return Change(left, top, left + share, top + share, bool(number % 2))


def seeded(*names: object) -> torch.Generator:
    """A generator that the names alone determine."""
    number = int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:8], "little") >> 1
    return torch.Generator().manual_seed(number)


@lru_cache(maxsize=16)
def palette(classes: int) -> Tensor:
    """Colours (classes, 3) in [0, 1], as far from each other and from black as a grid of colours allows."""
    levels = 2
    while levels**3 <= classes:
        levels += 1
    one = torch.linspace(0, 1, levels)
    grid = torch.cartesian_prod(one, one, one)
    chosen = [0]  # black, for pixels that do not count
    apart = torch.cdist(grid, grid)
    for _ in range(classes):
        chosen.append(int(apart[:, chosen].amin(dim=1).argmax()))
    return grid[chosen[1:]]


def painted_classes(numbers: Tensor, classes: int) -> Tensor:
    """Class numbers (H, W) as colours (3, H, W); pixels that do not count are black."""
    colours = torch.cat([palette(classes), torch.zeros(1, 3)])
    known = torch.where((numbers >= 0) & (numbers < classes), numbers, classes)
    return colours[known].permute(2, 0, 1)


def classes_of(pictures: Tensor, classes: int) -> Tensor:
    """Pictures (B, 3, H, W) as the numbers (B, H, W) of the nearest colours."""
    flat = pictures.permute(0, 2, 3, 1)
    return torch.cdist(flat.flatten(1, 2), palette(classes).to(flat)).argmin(-1).reshape(flat.shape[:3])


Paint = Callable[[Tensor, int], Tensor]
"""From a map and the number of classes to a picture (3, H, W)."""
Spoil = Callable[[Tensor, torch.Generator], Tensor]
"""From a picture (3, S, S) to the one that is shown."""


@dataclass(frozen=True)
class VisualTask:
    """What a picture is turned into.

    Attributes:
        name: of the task.
        kind: the kind of map that it needs; "" for none.
        paint: makes a picture of that map.
        spoil: makes the picture that is shown, where the image itself is the answer.
    """

    name: str
    kind: str = ""
    paint: Paint | None = None
    spoil: Spoil | None = None

    @property
    def has_classes(self) -> bool:
        """Whether the answer is one of the classes for each pixel."""
        return self.kind == "mask"

    def pair(
        self, image: Tensor, drawn: Mapping[str, Tensor], side: int, classes: int, name: str, copy: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The picture that is shown and the answer, each (3, S, S) in [0, 1].

        Args:
            image: float (3, H, W) in [0, 1], of any size.
            drawn: its maps by kind, (H, W) or (3, H, W).
            side: S.
            classes: how many the mask tells apart.
            name: of the image; with the copy it determines noise and holes.
            copy: see `augmentation`.
        """
        change = augmentation(copy)
        seen = resized(change.of(image), side)
        if self.paint is None:
            assert self.spoil is not None  # one of both
            return self.spoil(seen, seeded(self.name, name, copy)).clamp(0, 1), seen
        answer = self.paint(change.of(torch.as_tensor(drawn[self.kind])), classes)
        if self.kind == "normals" and change.mirrored:
            answer = torch.cat([1 - answer[:1], answer[1:]])
        return seen, resized(answer, side)

    def numbers(self, drawn: Mapping[str, Tensor], side: int) -> Tensor:
        """The class numbers (S, S) of an image, 255 where none counts; all 255 for a task without classes."""
        if not self.has_classes:
            return torch.full((side, side), IGNORED)
        whole = torch.as_tensor(drawn[self.kind])[None, None].double()
        return functional.interpolate(whole, size=(side, side), mode="nearest-exact")[0, 0].long()


def resized(picture: Tensor, side: int) -> Tensor:
    """A picture (3, H, W) at S x S pixels."""
    if tuple(picture.shape[-2:]) == (side, side):
        return picture.clamp(0, 1)
    made = functional.interpolate(picture[None].float(), size=(side, side), mode="bilinear", antialias=True)
    return made[0].clamp(0, 1)


def _grey(values: Tensor) -> Tensor:
    return values.float().expand(3, -1, -1)


def _binary(numbers: Tensor, classes: int) -> Tensor:
    return _grey(numbers == 1)


def _depth(metres: Tensor, classes: int) -> Tensor:
    """Near is white, far is black, and so is what is not known."""
    share = (metres.float() / NEAR).log() / math.log(FAR / NEAR)
    return _grey((1 - share).clamp(0, 1).nan_to_num(0))


def _normals(vectors: Tensor, classes: int) -> Tensor:
    return ((vectors.float() + 1) / 2).nan_to_num(0).clamp(0, 1)


def _noisy(picture: Tensor, generator: torch.Generator) -> Tensor:
    return picture + NOISE * torch.randn(picture.shape, generator=generator)


def _with_hole(picture: Tensor, generator: torch.Generator) -> Tensor:
    side = picture.shape[-1]
    hole = max(1, round(HOLE * side))
    top, left = torch.randint(side - hole + 1, (2,), generator=generator).tolist()
    made = picture.clone()
    made[:, top : top + hole, left : left + hole] = 0.5
    return made


VISUAL_TASKS: Mapping[str, VisualTask] = {
    one.name: one
    for one in (
        VisualTask("mask", "mask", paint=painted_classes),
        VisualTask("edges", "edges", paint=_binary),
        VisualTask("depth", "depth", paint=_depth),
        VisualTask("normals", "normals", paint=_normals),
        VisualTask("saliency", "saliency", paint=_binary),
        VisualTask("denoise", spoil=_noisy),
        VisualTask("inpaint", spoil=_with_hole),
    )
}


def visual_task(name: str) -> VisualTask:
    """The visual task of this name.

    Raises:
        DataError: there is none; the nearest names are told.
    """
    if name not in VISUAL_TASKS:
        raise DataError(f"There is no visual task {name!r}. {nearest(name, VISUAL_TASKS)}")
    return VISUAL_TASKS[name]
