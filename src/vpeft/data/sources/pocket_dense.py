"""The offline sets for dense prediction, as 'pocket-dense/NAME': masks, objects and depth of the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vpeft.data.config import DataConfig, TargetName
from vpeft.data.items import SPLITS, ArrayPicture, Item, Listing
from vpeft.data.objects import Objects, PixelsWithNumber
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.data.targets import Mask
from vpeft.data.targets.depth import DepthMap
from vpeft.errors import nearest

if TYPE_CHECKING:
    from vpeft.data.pocket_dense import DensePictures, DenseSet

_PREFIX = "pocket-dense/"


def _sets() -> Mapping[str, DenseSet]:
    # Late: the sets are only needed when one of them is asked for.
    from vpeft.data.pocket_dense import pocket_dense_sets

    return pocket_dense_sets()


def _mask(one: DenseSet, pictures: DensePictures, index: int) -> Mask:
    return Mask(ArrayPicture(pictures.mask, index))


def _objects(one: DenseSet, pictures: DensePictures, index: int) -> Objects:
    assert pictures.instances is not None  # a set that names classes of objects has some
    shared = ArrayPicture(pictures.instances, index)
    seen = pictures.objects(index)
    return Objects.of(
        [thing.box for thing in seen],
        [one.object_labels[thing.label] for thing in seen],
        shapes=[PixelsWithNumber(shared, thing.number) for thing in seen],
        size=pictures.mask.shape[1:],
    )


def _depth(one: DenseSet, pictures: DensePictures, index: int) -> DepthMap:
    assert pictures.depth is not None  # a set that says so has it
    return DepthMap(ArrayPicture(pictures.depth, index), scale=0.001)  # millimetres as metres


# What a set can give: its class names for that target (none: it has no such target), and the target of one picture.
_TARGETS: Mapping[
    str, tuple[Callable[[DenseSet], tuple[str, ...]], Callable[[DenseSet, DensePictures, int], object]]
] = {
    "objects": (lambda one: one.object_labels, _objects),
    "mask": (lambda one: one.mask_labels, _mask),
    "depth": (lambda one: ("depth",) if one.has_depth else (), _depth),
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
        return tuple(kind for kind in ("objects", "mask", "depth") if _TARGETS[kind][0](one))

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
            for index in range(len(pictures)):
                picture = ArrayPicture(pictures.images, index)
                listing.add(split, Item(f"{split}/{index:05d}", "", picture, target(one, pictures, index)))
        return listing
