"""A folder with one sub-folder per class, or with train/ val/ test/ of such folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from vpeft.data.config import DataConfig
from vpeft.data.images import (
    LEFT_BY_PROGRAMS,
    FilesBelow,
    files_below,
    holds_image,
    is_hidden,
    is_image_name,
    pictures_among,
    readable,
)
from vpeft.data.items import FilePicture, Item, Listing, SplitName, split_of
from vpeft.data.problems import DataError
from vpeft.data.sources.mask_folder import is_pair
from vpeft.data.sources.registry import Claim, source
from vpeft.data.targets import Label

# Folders that are no classes, since programs leave them behind.
NOT_CLASSES = LEFT_BY_PROGRAMS


@source
class Folder:
    """Class folders; images may lie deeper, their class is the first level."""

    name = "folder"
    title = "a folder with one sub-folder of images per class, or train/, val/, test/ of such sub-folders"

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        there = root.is_dir() and any(holds_image(folder) for folder in _folders(root))
        return Claim.LIKENESS if there else Claim.NONE

    def advice(self, config: DataConfig) -> str | None:
        """What to do with a folder of images of no class."""
        root = Path(config.source).expanduser()
        return _without_classes(root) if root.is_dir() and config.target == "label" else None

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        if not root.is_dir():
            raise DataError(f"{root} is not a folder.")
        listing = Listing(f"Expected: {self.title}.")
        if is_pair(root):
            raise Label().refused(f"{root} (folders images and masks with the same names)", "mask")
        if said := _without_classes(root):
            raise DataError(said)
        for split, folder in folders_of_classes(root, holds_image):
            _add_classes(listing, root, folder, split)
        return listing


def folders_of_classes(root: Path, holds: Callable[[Path], bool]) -> list[tuple[SplitName | None, Path]]:
    """The folders of classes: `root` itself without a split, or its folders train, val and test.

    Args:
        root: the folder of the data set.
        holds: whether something of a folder of a class is somewhere in a folder.

    Raises:
        DataError: splits and other folders are mixed, or two folders mean the same split.
    """
    splits = {folder: split_of(folder.name) for folder in _folders(root)}
    # A class may be called "train": a folder named like a split is one only if all are, and if it holds folders.
    by_split = bool(splits) and all(splits.values())
    nested = [folder for folder, split in splits.items() if split and any(holds(one) for one in _folders(folder))]
    if nested and not by_split:
        others = ", ".join(folder.name for folder, split in splits.items() if not split)
        raise DataError(
            f"{root} mixes splits ({', '.join(folder.name for folder in nested)}) and other folders ({others}). "
            "Keep train/, val/ and test/ alone in it, or point at the folder of classes."
        )
    if not by_split or not nested:
        return [(None, root)]
    seen: dict[SplitName | None, Path] = {}
    for folder, split in splits.items():
        if split in seen:
            raise DataError(f"{root} has two folders for {split}: {seen[split].name} and {folder.name}. Keep one.")
        seen[split] = folder
    return list(seen.items())


def _without_classes(root: Path) -> str | None:
    if _folders(root) or not any(is_image_name(file) for file in root.iterdir()):
        return None
    return f"{root} holds images but no class folders. Put those of each class into a sub-folder."


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))


def _add_classes(listing: Listing, root: Path, folder: Path, split: SplitName | None) -> None:
    """Add the images of the class folders in `folder`, named by their paths from `root`."""
    loose = [path for path in sorted(folder.iterdir()) if path.is_file() and is_image_name(path)]
    for path in loose:
        listing.problems.add("ignored", readable(path.relative_to(root).as_posix()), "not in a class folder")
    kinds = _folders(folder)
    files: dict[Path, list[Path]] = {}
    for kind in kinds:
        below = files_below(kind)
        below.note(listing.problems, root)
        files[kind] = below.files
    hidden = [path for path in sorted(folder.iterdir()) if path.is_dir() and is_hidden(path.name)]
    FilesBelow([], hidden, [], [], []).note(listing.problems, root)
    pictures = pictures_among(path for of_kind in files.values() for path in of_kind)
    for kind in kinds:
        for path in sorted(files[kind], key=lambda path: path.relative_to(root).as_posix()):
            name = readable(path.relative_to(root).as_posix())
            if path in pictures:
                listing.add(split, Item(name, readable(kind.name), FilePicture(path)))
            else:
                listing.problems.add("ignored", name)
    listing.stated = [*listing.stated, *(readable(kind.name) for kind in kinds)]
