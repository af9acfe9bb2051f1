"""Cityscapes: leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY, with the 19 classes that its benchmark trains."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpeft.data.config import DataConfig
from vpeft.data.images import files_below, readable
from vpeft.data.items import FilePicture, Item, Listing, Picture, split_of
from vpeft.data.mapped_picture import RenumberedMask
from vpeft.data.on_pixels import IGNORED
from vpeft.data.sources.registry import Claim, source
from vpeft.data.targets.mask import Mask

CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
# The label ids (cityscapesScripts, labels.py) of these classes; all others do not count.
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_TRAINED = tuple(_IDS.index(number) if number in _IDS else IGNORED for number in range(256))
_IMAGE = "_leftImg8bit.png"
# The finest first; masks of the training ids hold class numbers already.
_TRUTHS = ("gtFine", "gtCoarse")


@source
class Cityscapes:
    """Masks are *_labelTrainIds.png, or *_labelIds.png whose ids become the 19 classes. The test split has none."""

    name = "cityscapes"
    title = "Cityscapes: leftImg8bit/SPLIT/CITY/*.png and gtFine/SPLIT/CITY/*.png"
    targets = ("mask",)

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        there = (root / "leftImg8bit").is_dir() and any((root / truth).is_dir() for truth in _TRUTHS)
        return Claim.FORMAT if there else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        listing = Listing(f"Expected: {self.title}.", labels=config.label_names or CLASSES)
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
                mask = _mask(root / truth / file.relative_to(root / "leftImg8bit").parent / f"{stem}_{truth}")
                if mask is None:
                    listing.problems.add("missing_mask", name, f"there is no {stem}_{truth}_labelIds.png")
                    continue
                listing.add(split, Item(name, "", FilePicture(file), Mask(mask)))
        return listing


def _mask(start: Path) -> Picture | None:
    """The mask whose name begins so, with class numbers."""
    trained = start.with_name(f"{start.name}_labelTrainIds.png")
    if trained.is_file():
        return FilePicture(trained)
    plain = start.with_name(f"{start.name}_labelIds.png")
    return RenumberedMask(FilePicture(plain), _TRAINED) if plain.is_file() else None
