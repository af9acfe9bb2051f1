"""DomainNet: a folder for each of six domains, and lists such as real_train.txt and real_test.txt beside them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpeft.data.annotations import read_lines
from vpeft.data.config import DataConfig
from vpeft.data.items import FilePicture, Item, Listing, SplitName
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.guarded import short

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
_SPLITS: tuple[SplitName, ...] = ("train", "test")


@source
class DomainNet:
    """345 classes in six domains, with the official lists of training and test images.

    Name the folder of one domain, for a stream of domains, or the folder with all six, whose images are then joined.
    """

    name = "domainnet"
    title = "DomainNet, or one domain of it: real/, sketch/ ... with real_train.txt, real_test.txt ... beside them"

    def claims(self, config: DataConfig) -> Claim:
        root, domains = _named(config)
        return Claim.FORMAT if any((root / f"{one}_train.txt").is_file() for one in domains) else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root, domains = _named(config)
        listing = Listing(f"Expected: {self.title}.")
        names: dict[int, str] = {}
        for domain in domains:
            for split in _SPLITS:
                file = root / f"{domain}_{split}.txt"
                if not file.is_file():
                    raise DataError(f"{root} has no {file.name}. {listing.expected}")
                for place, line in enumerate(read_lines(file), start=1):
                    path, _, number = line.strip().rpartition(" ")
                    parts = path.split("/")
                    if len(parts) != 3 or parts[0] != domain or ".." in parts or not number.isdigit():
                        raise DataError(
                            f"{file}, line {place}: {short(line)} is not {domain}/CLASS/IMAGE and a class number."
                        )
                    if names.setdefault(int(number), parts[1]) != parts[1]:
                        raise DataError(
                            f"{file}, line {place}: class {number} is {short(parts[1])} here and"
                            f" {short(names[int(number)])} before."
                        )
                    listing.add(split, Item(path, parts[1], FilePicture(root / path)))
        listing.labels = [names[number] for number in sorted(names)]
        if len(set(listing.labels)) < len(listing.labels):
            raise DataError(f"The lists in {root} give one class two numbers.")
        return listing


def _named(config: DataConfig) -> tuple[Path, tuple[str, ...]]:
    """The folder of the lists, and the domains that are asked for."""
    root = Path(config.source).expanduser()
    return (root.parent, (root.name,)) if root.name in DOMAINS else (root, DOMAINS)
