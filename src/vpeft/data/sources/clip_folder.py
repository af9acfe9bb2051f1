"""A folder with one sub-folder of clips per class, or with train/ val/ test/ of such folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from vpeft.data.clips.clip import ClipFile, ClipFrames, frames_in
from vpeft.data.clips.video_file import is_video_name
from vpeft.data.config import DataConfig
from vpeft.data.images import files_below, holds_image, is_hidden, is_image_name, readable
from vpeft.data.items import Item, Listing, SplitName
from vpeft.data.problems import DataError
from vpeft.data.sources.folder import folders_of_classes
from vpeft.data.sources.registry import Claim, source


@source
class ClipFolder:
    """Class folders of videos, or of folders of frames; they may lie deeper, their class is the first level."""

    name = "clip_folder"
    title = "a folder with one sub-folder of videos, or of folders of frames, per class, or train/, val/, test/ of such"
    gives_clips = True

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        if not root.is_dir():
            return Claim.NONE
        folders = _folders(root)
        # A GIF may be meant as a picture, and a folder of images as images: they are clips where clips are asked for.
        if config.clip is not None:
            return Claim.MARK if any(_holds_clip(folder) for folder in folders) else Claim.NONE
        return Claim.LIKENESS if any(_holds_video(folder) for folder in folders) else Claim.NONE

    def advice(self, config: DataConfig) -> str | None:
        """What to do with one video, or with a folder of videos of one class."""
        path = Path(config.source).expanduser()
        if path.is_file() and is_video_name(path) and not is_image_name(path):
            return (
                f"{path} is one video. A data set of clips is {self.title}; or a list of paths and labels."
                " `vpeft predict ADAPTER VIDEO` takes one video."
            )
        # A GIF among pictures is one of them.
        if not path.is_dir() or (config.clip is None and any(is_image_name(file) for file in path.iterdir())):
            return None
        return self._without_classes(path)

    def _without_classes(self, root: Path) -> str | None:
        if _folders(root) or not any(is_video_name(file) for file in root.iterdir()):
            return None
        return f"{root} holds videos but no class folders. Put those of each class into a sub-folder."

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        if not root.is_dir():
            raise DataError(f"{root} is not a folder.")
        listing = Listing(f"Expected: {self.title}.")
        if said := self._without_classes(root):
            raise DataError(said)
        for split, folder in folders_of_classes(root, _holds_clip):
            _add_classes(listing, root, folder, split)
        return listing


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))


def _holds_video(folder: Path) -> bool:
    for _, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        if any(is_video_name(name) and not is_image_name(name) for name in names):
            return True
    return False


def _holds_clip(folder: Path) -> bool:
    return _holds_video(folder) or holds_image(folder)


def _add_classes(listing: Listing, root: Path, folder: Path, split: SplitName | None) -> None:
    """Add the clips of the class folders in `folder`, named by their paths from `root`."""
    kinds = _folders(folder)
    for kind in kinds:
        below = files_below(kind)
        below.note(listing.problems, root)
        label = readable(kind.name)
        frames: dict[Path, int] = {}
        for path in below.files:
            name = readable(path.relative_to(root).as_posix())
            if is_video_name(path):
                listing.add(split, Item(name, label, ClipFile(path)))
            elif is_image_name(path) and path.parent != kind:
                frames[path.parent] = frames.get(path.parent, 0) + 1
            elif is_image_name(path):
                listing.problems.add("ignored", name, "a picture that is in no folder of a clip")
            else:
                listing.problems.add("ignored", name)
        for clip in frames:
            if frames_in(clip):
                listing.add(split, Item(readable(clip.relative_to(root).as_posix()), label, ClipFrames(clip)))
    listing.stated = [*listing.stated, *(readable(kind.name) for kind in kinds)]
