"""Images in images/ and their masks in masks/, perhaps in train/, val/ and test/; a mask is named as its image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpeft.data.config import DataConfig
from vpeft.data.images import files_below, is_image_name, pictures_among, readable
from vpeft.data.items import FilePicture, Item, Listing, SplitName, split_of
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.data.targets import Mask

_IMAGES = ("images", "image", "imgs", "JPEGImages")
_MASKS = ("masks", "mask", "labels", "annotations", "SegmentationClass")
# One name a line, the first of class 0.
_NAMES = ("classes.txt", "labels.txt")
# What data sets append to the name of an image for that of its mask.
_ENDINGS = ("", "_mask", "_gt", "_label", "_seg")


@source
class MaskFolder:
    """With `masks` the folder of the masks is stated, and the source is that of the images."""

    name = "masks"
    title = "a folder with images/ and masks/ (or train/images, train/masks, ...), a mask named as its image"
    targets = ("mask",)

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        if config.target != "mask" or not root.is_dir():
            return Claim.NONE
        return Claim.MARK if config.masks is not None or _pairs(root) else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        listing = Listing(f"Expected: {self.title}.")
        if config.masks is not None:
            pairs: dict[SplitName | None, tuple[Path, Path]] = {None: (root, config.masks.expanduser())}
            inner = {folder: split_of(folder.name) for folder in root.iterdir() if folder.is_dir()}
            if inner and all(inner.values()):  # train/ and val/ in both
                pairs = {split: (folder, config.masks.expanduser() / folder.name) for folder, split in inner.items()}
        else:
            pairs = _pairs(root)
        if not pairs:
            raise DataError(f"{root} has no folder images beside a folder masks. Expected: {self.title}.")
        for split, (images, masks) in pairs.items():
            _add(listing, root, images, masks, split)
        listing.labels = config.label_names or _names(root)
        return listing


def is_pair(root: Path) -> bool:
    """Whether a folder holds images/ and masks/ alone and most images have a mask of their name."""
    folders = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if folders != {"images", "masks"}:
        return False
    stems = [{path.stem for path in files_below(root / name)[0] if is_image_name(path)} for name in ("images", "masks")]
    return bool(stems[0]) and 2 * len(stems[0] & stems[1]) > len(stems[0])


def _pairs(root: Path) -> dict[SplitName | None, tuple[Path, Path]]:
    """The folders of images and of masks, for each split; the key None where there are no splits."""
    own = _pair(root)
    if own is not None:
        # images/train beside masks/train is as common as train/images beside train/masks.
        inner = {folder.name: split_of(folder.name) for folder in own[0].iterdir() if folder.is_dir()}
        if inner and all(inner.values()):
            return {split: (own[0] / name, own[1] / name) for name, split in sorted(inner.items())}
        return {None: own}
    found: dict[SplitName | None, tuple[Path, Path]] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        split, pair = split_of(folder.name), _pair(folder)
        if split is not None and pair is not None:
            found[split] = pair
    return found


def _pair(folder: Path) -> tuple[Path, Path] | None:
    images = next((folder / name for name in _IMAGES if (folder / name).is_dir()), None)
    masks = next((folder / name for name in _MASKS if (folder / name).is_dir()), None)
    return (images, masks) if images is not None and masks is not None else None


def _add(listing: Listing, root: Path, images: Path, masks: Path, split: SplitName | None) -> None:
    """Add the images of one folder with the masks of another, found by their paths without the suffix."""
    if not masks.is_dir():
        raise DataError(f"There is no folder {masks} with the masks of {images}.")
    by_stem = {path.relative_to(masks).with_suffix("").as_posix(): path for path in files_below(masks).files}
    below = files_below(images)
    below.note(listing.problems, root)
    files = below.files
    pictures = pictures_among(files)
    for path in files:
        name = readable(path.relative_to(root).as_posix())
        if path not in pictures:
            listing.problems.add("ignored", name)
            continue
        stem = path.relative_to(images).with_suffix("").as_posix()
        mask = next((by_stem[stem + ending] for ending in _ENDINGS if stem + ending in by_stem), None)
        if mask is None:
            listing.problems.add("missing_mask", name, f"there is no {stem}.* in {readable(masks.name)}")
            continue
        listing.add(split, Item(name, "", FilePicture(path), Mask(FilePicture(mask))))


def _names(root: Path) -> list[str] | None:
    """Names of the classes, where a file tells them."""
    for name in _NAMES:
        if (root / name).is_file():
            lines = (root / name).read_text(encoding="utf-8-sig").splitlines()
            return [line.strip() for line in lines if line.strip()]
    return None
