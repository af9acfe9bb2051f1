"""Cityscapes: leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY, with the 19 classes that its benchmark trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vpeft.data.config import DataConfig
from vpeft.data.images import files_below, readable
from vpeft.data.items import FilePicture, Item, Listing, split_of
from vpeft.data.mapped_picture import RenumberedMask
from vpeft.data.objects import Objects, PixelsWithNumber
from vpeft.data.on_pixels import IGNORED
from vpeft.data.pixels import UnreadableImage
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.data.targets.mask import Mask

CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
# The label ids (cityscapesScripts, labels.py) of these classes; all others do not count.
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_TRAINED = tuple(_IDS.index(number) if number in _IDS else IGNORED for number in range(256))
# The classes whose objects are told apart: person to bus, and train to bicycle.
THINGS = CLASSES[CLASSES.index("person") :]
_THING_IDS = _IDS[CLASSES.index("person") :]
# A pixel of object n of the id k holds 1000 k + n; one of a group that is not told apart holds k.
_OBJECTS_OF_AN_ID = 1000
_IMAGE = "_leftImg8bit.png"
# The finest first; masks of the training ids hold class numbers already.
_TRUTHS = ("gtFine", "gtCoarse")


@source
class Cityscapes:
    """Masks are *_labelTrainIds.png, or *_labelIds.png whose ids become the 19 classes. The test split has none.

    Objects are those of *_instanceIds.png, of the 8 classes that are told apart; groups of them are crowds.
    """

    name = "cityscapes"
    title = "Cityscapes: leftImg8bit/SPLIT/CITY/*.png and gtFine/SPLIT/CITY/*.png"
    targets = ("mask", "objects")

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        there = (root / "leftImg8bit").is_dir() and any((root / truth).is_dir() for truth in _TRUTHS)
        return Claim.FORMAT if there else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        objects = config.target == "objects"
        listing = Listing(f"Expected: {self.title}.", labels=config.label_names or (THINGS if objects else CLASSES))
        if objects and len(listing.labels or ()) != len(THINGS):
            raise DataError(
                f"Cityscapes tells the objects of {len(THINGS)} classes apart, {', '.join(THINGS)}, and label_names"
                f" gives {len(listing.labels or ())}. Give as many names, or none."
            )
        truth = next(one for one in _TRUTHS if (root / one).is_dir())
        for folder in sorted(path for path in (root / "leftImg8bit").iterdir() if path.is_dir()):
            split = split_of(folder.name)
            if split is None or split == "test":
                why = "none of train and val" if split is None else "its masks are not published"
                listing.problems.add("ignored", f"leftImg8bit/{folder.name}", why)
                continue
            below = files_below(folder)
            below.note(listing.problems, root)
            for file in below.files:
                name = readable(file.relative_to(root).as_posix())
                if not file.name.endswith(_IMAGE):
                    listing.problems.add("ignored", name)
                    continue
                stem = file.name.removesuffix(_IMAGE)
                start = root / truth / file.relative_to(root / "leftImg8bit").parent / f"{stem}_{truth}"
                found = _objects(start, list(listing.labels or ())) if objects else _mask(start)
                if found is None:
                    kind = "instanceIds" if objects else "labelIds"
                    listing.problems.add("missing_mask", name, f"there is no {stem}_{truth}_{kind}.png")
                    continue
                listing.add(split, Item(name, "", FilePicture(file), found))
        return listing


def _mask(start: Path) -> Mask | None:
    """The mask whose name begins so, with class numbers."""
    trained = start.with_name(f"{start.name}_labelTrainIds.png")
    if trained.is_file():
        return Mask(FilePicture(trained))
    plain = start.with_name(f"{start.name}_labelIds.png")
    return Mask(RenumberedMask(FilePicture(plain), _TRAINED)) if plain.is_file() else None


def _objects(start: Path, names: Sequence[str]) -> Objects | None:
    """The objects in the file whose name begins so. One that cannot be read has none, which the check then names."""
    file = start.with_name(f"{start.name}_instanceIds.png")
    if not file.is_file():
        return None
    picture = FilePicture(file)
    try:
        stored = picture.numbers()
    except (UnreadableImage, OSError):
        # the check of all files meets it again
        return Objects.of([(0, 0, 1, 1)], names[:1], shapes=[PixelsWithNumber(picture, 0)])
    ids = np.where(stored < _OBJECTS_OF_AN_ID, stored, stored // _OBJECTS_OF_AN_ID)
    rows, columns = np.nonzero(np.isin(ids, _THING_IDS))
    numbers, which = np.unique(stored[rows, columns], return_inverse=True)
    boxes = np.tile([stored.shape[1], stored.shape[0], 0, 0], (len(numbers), 1))
    np.minimum.at(boxes, (which, 0), columns)
    np.minimum.at(boxes, (which, 1), rows)
    np.maximum.at(boxes, (which, 2), columns + 1)
    np.maximum.at(boxes, (which, 3), rows + 1)
    crowd = numbers < _OBJECTS_OF_AN_ID
    of_class = np.where(crowd, numbers, numbers // _OBJECTS_OF_AN_ID).tolist()
    return Objects.of(
        boxes.tolist(),
        [names[_THING_IDS.index(number)] for number in of_class],
        crowd=crowd.tolist(),
        shapes=[PixelsWithNumber(picture, number) for number in numbers.tolist()],
        size=(int(stored.shape[0]), int(stored.shape[1])),
    )
