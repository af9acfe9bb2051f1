"""Images in images/ with masks in masks/ or depth maps in depth/, perhaps in train/, val/, test/, of the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from vpeft.data.class_tables import ClassTable, find_class_table
from vpeft.data.config import DataConfig
from vpeft.data.images import files_below, is_image_name, pictures_among, readable
from vpeft.data.items import FilePicture, Item, Listing, Picture, SplitName, split_of
from vpeft.data.mapped_picture import ColouredMask
from vpeft.data.on_pixels import OnPixels
from vpeft.data.pixel_maps import BinaryMap
from vpeft.data.problems import DataError, Kind
from vpeft.data.sources.registry import Claim, source
from vpeft.data.targets.depth import DepthMap
from vpeft.data.targets.mask import Mask
from vpeft.data.targets.normals import NormalMap

_IMAGES = ("images", "image", "imgs", "JPEGImages")
_MASKS = ("masks", "mask", "labels", "annotations", "SegmentationClass")
# The folder of the maps of each kind.
_MAPS = {
    "mask": _MASKS,
    "depth": ("depth", "depths", "depth_maps", "depthmaps"),
    "normals": ("normals", "normal", "surface_normals"),
    "edges": ("edges", "edge"),
    "saliency": ("saliency", "sal"),
    "parts": ("parts", "human_parts"),
}
# What makes a map of a picture, where neither classes nor a scale are asked for.
_PLAIN: dict[str, Callable[[Picture], OnPixels]] = {
    "normals": NormalMap,
    "edges": BinaryMap,
    "saliency": BinaryMap,
    "parts": Mask,
}
# What data sets append to the name of an image for that of its mask.
_ENDINGS = ("", "_mask", "_gt", "_label", "_seg", "_L", "_depth", "_normals", "_edges", "_saliency", "_parts")


@source
class MaskFolder:
    """With `masks` the folder of the masks is stated, and the source is that of the images.

    A mask holds class numbers, in grey or as a palette; or colours, where a file beside the folders gives each class
    its colour (classes.csv, class_dict.csv: name,r,g,b). A depth map is a PNG of 16 bits, a TIFF or an array. Maps of
    normals, edges, what stands out and parts of the body lie in normals/, edges/, saliency/ and parts/.
    """

    name = "masks"
    title = "a folder with images/ and masks/ or depth/ (or train/images, train/masks, ...), files of the same names"
    targets = tuple(_MAPS)

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        if config.target not in self.targets or not root.is_dir():
            return Claim.NONE
        return Claim.MARK if config.masks is not None or _pairs(root, config.target) else Claim.NONE

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
            pairs = _pairs(root, config.target)
        if not pairs:
            word = "masks" if config.target == "mask" else config.target
            raise DataError(f"{root} has no folder images beside a folder {word}. Expected: {self.title}.")
        table = None if config.target != "mask" else find_class_table(root, *(masks for _, masks in pairs.values()))
        for split, (images, masks) in pairs.items():
            _add(listing, root, images, masks, split, _Maker(config, table))
        listing.labels = config.label_names or (None if table is None else table.names)
        return listing


def is_pair(root: Path) -> bool:
    """Whether a folder holds images/ and masks/ alone and most images have a mask of their name."""
    folders = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if folders != {"images", "masks"}:
        return False
    stems = [{path.stem for path in files_below(root / name)[0] if is_image_name(path)} for name in ("images", "masks")]
    return bool(stems[0]) and 2 * len(stems[0] & stems[1]) > len(stems[0])


class _Maker(NamedTuple):
    """Makes the target of a file as the configuration asks."""

    config: DataConfig
    table: ClassTable | None

    @property
    def missing(self) -> Kind:
        """The problem that an image has no such file."""
        return "missing_depth" if self.config.target == "depth" else "missing_mask"

    def __call__(self, file: Path) -> OnPixels:
        picture = FilePicture(file)
        if self.config.target in _PLAIN:
            return _PLAIN[self.config.target](picture)
        if self.config.target == "depth":
            return DepthMap(picture, self.config.depth_scale)
        if self.table is None or not self.table.colours:
            return Mask(picture)
        return Mask(ColouredMask(picture, self.table.colours, self.table.ignored))


def _pairs(root: Path, target: str) -> dict[SplitName | None, tuple[Path, Path]]:
    """The folders of images and of masks, for each split; the key None where there are no splits."""
    own = _pair(root, target)
    if own is not None:
        # images/train beside masks/train is as common as train/images beside train/masks.
        inner = {folder.name: split_of(folder.name) for folder in own[0].iterdir() if folder.is_dir()}
        if inner and all(inner.values()):
            return {split: (own[0] / name, own[1] / name) for name, split in sorted(inner.items())}
        return {None: own}
    found: dict[SplitName | None, tuple[Path, Path]] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        split, pair = split_of(folder.name), _pair(folder, target)
        if split is not None and pair is not None:
            found[split] = pair
    return found


def _pair(folder: Path, target: str) -> tuple[Path, Path] | None:
    images = next((folder / name for name in _IMAGES if (folder / name).is_dir()), None)
    masks = next((folder / name for name in _MAPS[target] if (folder / name).is_dir()), None)
    return (images, masks) if images is not None and masks is not None else None


def _add(
    listing: Listing,
    root: Path,
    images: Path,
    masks: Path,
    split: SplitName | None,
    make: _Maker,
) -> None:
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
            listing.problems.add(make.missing, name, f"there is no {stem}.* in {readable(masks.name)}")
            continue
        listing.add(split, Item(name, "", FilePicture(path), make(mask)))
