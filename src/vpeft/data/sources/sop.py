"""Stanford Online Products: Ebay_train.txt and Ebay_test.txt, which list images by folders of kinds of things."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpeft.data.annotations import read_lines
from vpeft.data.config import DataConfig
from vpeft.data.items import FilePicture, Item, Listing, SplitName
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.guarded import short

_LISTS: dict[SplitName, str] = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}
_COLUMNS = ["image_id", "class_id", "super_class_id", "path"]


@source
class OnlineProducts:
    """22,634 products: 59,551 images of 11,318 of them train, 60,502 of the others are tested."""

    name = "sop"
    title = "Stanford Online Products: Ebay_train.txt and Ebay_test.txt beside the folders of images"

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        return Claim.FORMAT if any((root / name).is_file() for name in _LISTS.values()) else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        listing = Listing(f"Expected: {self.title}.")
        for split, name in _LISTS.items():
            file = root / name
            if not file.is_file():
                raise DataError(f"{root} has no {name}. Expected: {self.title}.")
            header, *lines = read_lines(file) or [""]
            if header.split() != _COLUMNS:
                raise DataError(f"{file} begins with {short(header)}; expected: {' '.join(_COLUMNS)}.")
            for place, line in enumerate(lines, start=2):
                cells = line.split(maxsplit=3)
                if len(cells) != 4 or not cells[1].isdigit():
                    raise DataError(f"{file}, line {place}: {short(line)} is not {' '.join(_COLUMNS)}.")
                listing.add(split, Item(cells[3], str(int(cells[1])), FilePicture(root / cells[3])))
        return listing
