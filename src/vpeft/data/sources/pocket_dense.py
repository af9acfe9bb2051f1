"""The offline sets for dense prediction, as 'pocket-dense/NAME': masks, objects, depth, normals, saliency and edges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vpeft.data.config import DataConfig, TargetName
from vpeft.data.items import SPLITS, ArrayPicture, Item, Listing
from vpeft.data.objects import Objects, PixelsWithNumber
from vpeft.data.pixel_maps import BinaryMap
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.data.targets import Mask
from vpeft.data.targets.depth import DepthMap
from vpeft.data.targets.normals import NormalMap
from vpeft.errors import nearest

if TYPE_CHECKING:
    from vpeft.data.pocket_dense import DensePictures, DenseSet

_PREFIX = "pocket-dense/"


def _sets() -> Mapping[str, DenseSet]:
    # Late: the sets are only needed when one of them is asked for.
    from vpeft.data.pocket_dense import pocket_dense_sets

    return pocket_dense_sets()


Maker = Callable[[int], object]
"""From the number of a picture to its target."""


def _mask(one: DenseSet, pictures: DensePictures, split: str) -> Maker:
    return lambda index: Mask(ArrayPicture(pictures.mask, index))


def _objects(one: DenseSet, pictures: DensePictures, split: str) -> Maker:
    assert pictures.instances is not None  # a set that names classes of objects has some
    instances = pictures.instances

    def made(index: int) -> Objects:
        shared = ArrayPicture(instances, index)
        seen = pictures.objects(index)
        return Objects.of(
            [thing.box for thing in seen],
            [one.object_labels[thing.label] for thing in seen],
            shapes=[PixelsWithNumber(shared, thing.number) for thing in seen],
            size=pictures.mask.shape[1:],
        )

    return made


def _depth(one: DenseSet, pictures: DensePictures, split: str) -> Maker:
    assert pictures.depth is not None  # a set that says so has it
    depth = pictures.depth
    return lambda index: DepthMap(ArrayPicture(depth, index), scale=0.001)  # millimetres as metres


def _normals(one: DenseSet, pictures: DensePictures, split: str) -> Maker:
    normals = one.normals(split)
    return lambda index: NormalMap(ArrayPicture(normals, index))


def _saliency(one: DenseSet, pictures: DensePictures, split: str) -> Maker:
    assert pictures.instances is not None  # a set that names classes of objects has some
    things = (pictures.instances > 0).astype(np.uint8)
    return lambda index: BinaryMap(ArrayPicture(things, index))


def _edges(one: DenseSet, pictures: DensePictures, split: str) -> Maker:
    assert pictures.instances is not None  # a set that names classes of objects has some
    edges = edges_of(pictures.mask, pictures.instances)
    return lambda index: BinaryMap(ArrayPicture(edges, index))


def edges_of(mask: NDArray[np.uint8], instances: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels whose neighbour to the right or below shows another object or class, and those neighbours.

    Arguments and result are uint8 (N, H, W).
    """
    what = mask.astype(np.int16) * 256 + instances
    found = np.zeros(what.shape, np.uint8)
    right, below = what[:, :, 1:] != what[:, :, :-1], what[:, 1:] != what[:, :-1]
    found[:, :, 1:] |= right
    found[:, :, :-1] |= right
    found[:, 1:] |= below
    found[:, :-1] |= below
    return found


# What a set can give: its class names for that target (none: it has no such target), and the targets of one split.
_TARGETS: Mapping[
    str, tuple[Callable[[DenseSet], tuple[str, ...]], Callable[[DenseSet, DensePictures, str], Maker]]
] = {
    "objects": (lambda one: one.object_labels, _objects),
    "mask": (lambda one: one.mask_labels, _mask),
    "depth": (lambda one: ("depth",) if one.has_depth else (), _depth),
    "normals": (lambda one: ("x", "y", "z") if one.draw_normals else (), _normals),
    "saliency": (lambda one: ("salient",) if one.object_labels else (), _saliency),
    "edges": (lambda one: ("edge",) if one.object_labels else (), _edges),
}


@source
class PocketDense:
    """Each set has its own splits and gives the target that the task asks for, where it has it."""

    name = "pocket-dense"
    title = "a set for dense prediction of the offline suite, 'pocket-dense/NAME'"
    targets: tuple[TargetName, ...] = tuple(_TARGETS)

    def claims(self, config: DataConfig) -> Claim:
        if not config.source.startswith(_PREFIX):
            return Claim.NONE
        # A folder of that name may be meant instead: then neither is taken without asking.
        return Claim.LIKENESS if Path(config.source).exists() else Claim.MARK

    def names(self) -> Iterable[str]:
        return [_PREFIX + name for name in _sets()]

    def targets_in(self, config: DataConfig) -> tuple[TargetName, ...]:
        """What one set has, its objects first, which export then writes as COCO JSON."""
        one = _sets().get(config.source.removeprefix(_PREFIX))
        if one is None:
            return self.targets
        return tuple(kind for kind, (names, _) in _TARGETS.items() if names(one))

    def read(self, config: DataConfig) -> Listing:
        name = config.source.removeprefix(_PREFIX)
        sets = _sets()
        if name not in sets:
            raise DataError(f"pocket-dense has no set {name!r}. {nearest(name, sets)}")
        one = sets[name]
        names, target = _TARGETS[config.target]
        if not names(one):
            raise DataError(f"{config.source} has no {config.target}; it has {', '.join(self.targets_in(config))}.")
        listing = Listing(f"Expected: {self.title}.", labels=names(one))
        for split in SPLITS:
            pictures = one.load(split)
            make = target(one, pictures, split)
            for index in range(len(pictures)):
                picture = ArrayPicture(pictures.images, index)
                listing.add(split, Item(f"{split}/{index:05d}", "", picture, make(index)))
        return listing
