"""VTAB-1k as adaptation papers pass it on: the lists train800.txt, val200.txt, train800val200.txt and test.txt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpeft.data.config import DataConfig
from vpeft.data.items import FilePicture, Item, Listing, SplitName, is_whole_number
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.guarded import MEBI, read_bytes, text_of

_LISTS: dict[SplitName, str] = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
_WHOLE = "train800val200.txt"
_MOST_BYTES = 64 * MEBI  # the longest list, of 73,257 test images, has 3 MiB


@source
class VTAB1k:
    """Lines `relative/path label`; the label is a class index. Train on all 1000 with `train_on_val`."""

    name = "vtab1k"
    title = "a folder with train800.txt, val200.txt and test.txt (or train800val200.txt and test.txt)"

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        marked = (root / _LISTS["train"]).is_file() or (root / _WHOLE).is_file()
        return Claim.MARK if marked else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        lists = Path(config.source).expanduser()
        root = (config.root or lists).expanduser()
        listing = Listing(f"Expected: {self.title}.")
        separate = (lists / _LISTS["train"]).is_file()
        if separate and not (lists / _LISTS["val"]).is_file():
            raise DataError(f"{lists} has {_LISTS['train']} but not {_LISTS['val']}.")
        files: dict[SplitName, str] = _LISTS if separate else {"train": _WHOLE, "test": _LISTS["test"]}
        for split, file in files.items():
            path = lists / file
            if not path.is_file():
                if split == "test":
                    continue
                raise DataError(f"{lists} has no {file}. Expected: {self.title}.")
            for item in listed_items(path, root):
                listing.add(split, item)
        return listing


def listed_items(path: Path, root: Path) -> Iterable[Item]:
    """The images of a list of lines `relative/path label`, in order; raises `DataError` with the line of a mistake."""
    whole = text_of(read_bytes(path, str(path), DataError, _MOST_BYTES), str(path), DataError)
    for line, text in enumerate(whole.splitlines(), start=1):
        if not text.strip():
            continue
        name, _, label = text.strip().rpartition(" ")
        if not name.strip():
            raise DataError(
                f"{path}, line {line}: {text.strip()!r} is not a path and a label with a blank between them."
            )
        if not is_whole_number(label):
            raise DataError(
                f"{path}, line {line}: the label {label!r} is not a number; this layout needs class indices."
            )
        name = name.strip()
        yield Item(name, str(int(label)), FilePicture(root / name))
