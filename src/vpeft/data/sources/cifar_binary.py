"""CIFAR-10 and CIFAR-100 in the binary version of their authors: plain bytes, no pickle.

CIFAR-10: data_batch_1.bin to data_batch_5.bin and test_batch.bin, each record one byte of class and 3,072 bytes of a
32 x 32 image, channel by channel; batches.meta.txt has the names. CIFAR-100: train.bin and test.bin, each record a byte
of the coarse class, one of the fine class, and the image; fine_label_names.txt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpeft.data.annotations import read_lines
from vpeft.data.config import DataConfig
from vpeft.data.items import ArrayPicture, Item, Listing, SplitName
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.guarded import MEBI, read_bytes

_SIDE, _IMAGE = 32, 3 * 32 * 32
_MOST_BYTES = 256 * MEBI  # train.bin has 147 MiB


@dataclass(frozen=True)
class _Version:
    """The files of one of the two sets; `before` is the number of bytes before an image, the last of them its class."""

    names: str
    before: int
    files: tuple[tuple[SplitName, str], ...]

    def at(self, root: Path) -> bool:
        return (root / self.names).is_file() and (root / self.files[0][1]).is_file()


_TEN = _Version(
    "batches.meta.txt",
    1,
    (*(("train", f"data_batch_{number}.bin") for number in range(1, 6)), ("test", "test_batch.bin")),
)
_HUNDRED = _Version("fine_label_names.txt", 2, (("train", "train.bin"), ("test", "test.bin")))


@source
class CifarBinary:
    """Images are named by their file and their number in it: data_batch_1/00042."""

    name = "cifar_binary"
    title = "CIFAR-10 or CIFAR-100 in the binary version: data_batch_1.bin ... or train.bin, and names of classes"

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        return Claim.FORMAT if _TEN.at(root) or _HUNDRED.at(root) else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        version = _TEN if _TEN.at(root) else _HUNDRED
        names = read_lines(root / version.names)
        listing = Listing(f"Expected: {self.title}.", labels=names)
        for split, file in version.files:
            if not (root / file).is_file():
                raise DataError(f"{root} has no {file}. Expected: {self.title}.")
            for item in _items(root / file, version.before, names):
                listing.add(split, item)
        return listing


def _items(path: Path, before: int, names: list[str]) -> Iterable[Item]:
    data = np.frombuffer(read_bytes(path, str(path), DataError, _MOST_BYTES), dtype=np.uint8)
    size = before + _IMAGE
    if not len(data) or len(data) % size:
        raise DataError(f"{path} has {len(data)} bytes, which are no whole records of {size}. Get it again.")
    rows = data.reshape(-1, size)
    images = rows[:, before:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    labels = rows[:, before - 1]
    if labels.max() >= len(names):
        number = int(labels.argmax())
        raise DataError(f"{path}, image {number}, is of class {labels[number]}, and there are {len(names)} names.")
    for number, label in enumerate(labels):
        yield Item(f"{path.stem}/{number:05d}", names[label], ArrayPicture(images, number))
