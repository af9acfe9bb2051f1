"""The lists of FGVC (CUB, NABirds, Flowers, Dogs, Cars) as VPT passes them on: train.json, val.json, test.json.

Each maps image paths to class ids, which need not start at 0 nor be without gaps. The usual loader numbers them anew
per split, so that a class missing from one split shifts the rest; here the ids of all splits are numbered together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from vpeft.data.annotations import read_json_file
from vpeft.data.config import DataConfig
from vpeft.data.items import SPLITS, FilePicture, Item, Listing, is_whole_number
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.guarded import printable, short

# Where the five sets keep their images, relative to the lists.
_IMAGE_FOLDERS = ("", "images", "Images")


@source
class FGVC:
    """`{image path: class id}` per split."""

    name = "fgvc"
    title = "a folder with train.json, val.json and test.json, each {image path: class id}"

    def claims(self, config: DataConfig) -> Claim:
        marked = (Path(config.source).expanduser() / "train.json").is_file()
        return Claim.MARK if marked else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        lists = Path(config.source).expanduser()
        listing = Listing(f"Expected: {self.title}.")
        tables = {split: _table(lists / f"{split}.json") for split in SPLITS if (lists / f"{split}.json").is_file()}
        if "train" not in tables:
            raise DataError(f"{lists} has no train.json. Expected: {self.title}.")
        root = config.root.expanduser() if config.root else _image_folder(lists, [*tables["train"]])
        for split, table in tables.items():
            for name, label in table.items():
                listing.add(split, Item(name, label, FilePicture(root / name)))
        return listing


def _table(path: Path) -> dict[str, str]:
    table = read_json_file(path)
    if not isinstance(table, dict):
        raise DataError(f"{path} holds a {type(table).__name__}; expected {{image path: class id}}.")
    for name, label in table.items():
        if isinstance(label, bool) or not is_whole_number(str(label)):
            said = f"the label {short(str(label))} of {printable(name, 60)} is not a number"
            raise DataError(f"{path}: {said}; this layout needs class ids.")
    return {name: str(int(label)) for name, label in table.items()}


def _image_folder(lists: Path, names: list[str]) -> Path:
    """The folder in which the first listed images are; several are tried, since one may be missing."""
    for folder in _IMAGE_FOLDERS:
        if any(os.path.isfile(lists / folder / name) for name in names[:20]):
            return lists / folder
    return lists
