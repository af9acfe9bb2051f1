"""ImageNet-R as it is unpacked: folders n01443537/ ... of renditions art_0.jpg, cartoon_12.jpg ..., with a split."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from vpeft.data.config import DataConfig
from vpeft.data.items import FilePicture, Item, Listing
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source

# The 6,000 test images of the public split of CODA-Prompt (github.com/GT-RIPL/CODA-Prompt, dataloaders/splits): by
# class, kind of rendition and number; `images` counts those of training too, 30,000 in all.
TEST = Path(__file__).parents[1] / "imagenet_r_test.json"
_NAME = re.compile(r"([a-z]+)_(\d+)\.jpg")


@lru_cache(maxsize=1)
def split_of_classes() -> dict[str, tuple[int, frozenset[str]]]:
    """For each class (WordNet id) the number of its images, and the names of those that are tested."""
    stated: dict[str, dict[str, Any]] = json.loads(TEST.read_text(encoding="utf-8"))
    return {
        name: (one["images"], frozenset(f"{kind}_{n}.jpg" for kind, numbers in one["test"].items() for n in numbers))
        for name, one in stated.items()
    }


@source
class ImageNetR:
    """200 classes of ImageNet as art, cartoons, toys ...: 24,000 images train and 6,000 are tested, by the split that
    CODA-Prompt published. The data set itself has no split."""

    name = "imagenet_r"
    title = "ImageNet-R: folders n01443537/ and 199 others, with images such as art_0.jpg"

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        folders = list(_folders(root)) if root.is_dir() else []
        if not folders or not {one.name for one in folders} <= set(split_of_classes()):
            return Claim.NONE
        some = next((one for folder in folders for one in sorted(folder.iterdir()) if one.suffix == ".jpg"), None)
        return Claim.FORMAT if some is not None and _NAME.fullmatch(some.name) else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        listing = Listing(f"Expected: {self.title}.", labels=sorted(split_of_classes()))
        if not root.is_dir():
            raise DataError(f"{root} is not a folder. {listing.expected}")
        there = {folder.name for folder in _folders(root)}
        unknown, absent = sorted(there - set(split_of_classes())), sorted(set(split_of_classes()) - there)
        if unknown:
            raise DataError(f"{root} has a folder {unknown[0]}, which is no class of ImageNet-R. {listing.expected}")
        if absent:
            raise DataError(
                f"{root} lacks {len(absent)} of the 200 classes of ImageNet-R, such as {absent[0]}. Unpack it again."
            )
        for name, (count, tested) in sorted(split_of_classes().items()):
            found = {file.name: file for file in (root / name).iterdir() if _NAME.fullmatch(file.name)}
            for lost in sorted(tested - set(found)):
                listing.problems.add("missing", f"{name}/{lost}")
            if len(found) - len(tested & set(found)) > count - len(tested):
                raise DataError(
                    f"{root / name} has {len(found)} images, and this class of ImageNet-R has {count}: the others would"
                    " be trained on and are not of the published split. Take them away."
                )
            for file in sorted(found):
                item = Item(f"{name}/{file}", name, FilePicture(found[file]))
                listing.add("test" if file in tested else "train", item)
        return listing


def _folders(root: Path) -> Iterator[Path]:
    return (one for one in sorted(root.iterdir()) if one.is_dir() and not one.name.startswith("."))
