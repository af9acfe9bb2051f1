"""ADE20K: images/training and annotations/training, and the same for validation; number 0 does not count."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpeft.data.annotations import read_lines
from vpeft.data.config import DataConfig
from vpeft.data.images import files_below, pictures_among, readable
from vpeft.data.items import FilePicture, Item, Listing, SplitName, split_of
from vpeft.data.mapped_picture import RenumberedMask
from vpeft.data.on_pixels import IGNORED
from vpeft.data.sources.registry import Claim, source
from vpeft.data.targets.mask import Mask

# The published list of names: number, ratio, images, stuff, names separated by commas.
_NAMES = "objectInfo150.txt"
_CLASSES = 150
# 0 does not count, and n is class n - 1.
_REDUCED = (IGNORED, *range(255), IGNORED)[:256]


@source
class Ade20k:
    """The scene parsing benchmark: 150 classes, whose numbers in the masks are one higher."""

    name = "ade20k"
    title = "ADE20K: images/training, annotations/training, images/validation, annotations/validation"
    targets = ("mask",)

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        if not (root / "images" / "training").is_dir() or not (root / "annotations" / "training").is_dir():
            return Claim.NONE
        marked = (root / _NAMES).is_file() or (root / "sceneCategories.txt").is_file()
        named = next((root / "images" / "training").glob("ADE_*"), None) is not None
        return Claim.FORMAT if marked or named else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        listing = Listing(f"Expected: {self.title}.", labels=config.label_names or _class_names(root))
        for folder in sorted(path for path in (root / "images").iterdir() if path.is_dir()):
            split, masks = split_of(folder.name), root / "annotations" / folder.name
            if split is None or not masks.is_dir():
                listing.problems.add("ignored", readable(folder.relative_to(root).as_posix()), "no split with masks")
                continue
            _add(listing, root, folder, masks, split)
        return listing


def _add(listing: Listing, root: Path, images: Path, masks: Path, split: SplitName) -> None:
    below = files_below(images)
    below.note(listing.problems, root)
    pictures = pictures_among(below.files)
    for file in below.files:
        name = readable(file.relative_to(root).as_posix())
        if file not in pictures:
            listing.problems.add("ignored", name)
            continue
        mask = masks / file.relative_to(images).with_suffix(".png")
        if not mask.is_file():
            listing.problems.add("missing_mask", name, f"there is no {mask.name}")
            continue
        listing.add(split, Item(name, "", FilePicture(file), Mask(RenumberedMask(FilePicture(mask), _REDUCED))))


def _class_names(root: Path) -> list[str]:
    """The names in the published list, the first of several; numbers where there is no list."""
    if not (root / _NAMES).is_file():
        return [str(number) for number in range(_CLASSES)]
    lines = [line.split("\t") for line in read_lines(root / _NAMES)]
    return [cells[-1].split(",")[0].strip() for cells in lines if cells[0].strip().isdigit()]
