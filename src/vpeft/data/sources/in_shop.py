"""DeepFashion In-Shop Clothes Retrieval: list_eval_partition.txt says what trains, what is asked and what is found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from vpeft.data.annotations import read_lines
from vpeft.data.config import DataConfig
from vpeft.data.items import FilePicture, Item, Listing
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.guarded import short

_LIST = "list_eval_partition.txt"
_COLUMNS = ["image_name", "item_id", "evaluation_status"]
_ROLES: dict[str, Literal["", "query", "gallery"]] = {"train": "", "query": "query", "gallery": "gallery"}


@source
class InShop:
    """Pieces of clothing: 25,882 images of 3,997 train; 14,218 queries look for the 3,985 others among 12,612."""

    name = "in_shop"
    title = "DeepFashion In-Shop: list_eval_partition.txt, or Eval/ or Anno/ with it, and img/ or Img/img/"

    def claims(self, config: DataConfig) -> Claim:
        return Claim.NONE if _list_of(Path(config.source).expanduser()) is None else Claim.FORMAT

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        file = _list_of(root)
        if file is None:
            raise DataError(f"{root} has no {_LIST}. Expected: {self.title}.")
        images = next((one for one in (root, root / "Img") if (one / "img").is_dir()), None)
        if images is None:
            raise DataError(f"{root} has no folder img or Img/img with the images. Expected: {self.title}.")
        lines = read_lines(file)
        if len(lines) < 2 or not lines[0].isdigit() or lines[1].split() != _COLUMNS:
            raise DataError(f"{file} does not begin with the number of images and the line {' '.join(_COLUMNS)}.")
        if int(lines[0]) != len(lines) - 2:
            raise DataError(f"{file} says that it lists {lines[0]} images, and lists {len(lines) - 2}.")
        listing = Listing(f"Expected: {self.title}.")
        for place, line in enumerate(lines[2:], start=3):
            cells = line.split()
            if len(cells) != 3 or cells[2] not in _ROLES:
                raise DataError(f"{file}, line {place}: {short(line)} is not {' '.join(_COLUMNS)} with train, query or"
                                " gallery at its end.")  # fmt: skip
            name, label, status = cells
            item = Item(name, label, FilePicture(images / name), role=_ROLES[status])
            listing.add("train" if status == "train" else "test", item)
        return listing


def _list_of(root: Path) -> Path | None:
    """The list, where it is there."""
    found = (folder / _LIST for folder in (root, root / "Eval", root / "Anno"))
    return next((file for file in found if file.is_file()), None)
