"""Drawings for retrieval, as 'pocket-retrieval/NAME': emoji, faces that differ little, and symbols."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpeft.data.config import DataConfig
from vpeft.data.items import ArrayPicture, Item, Listing
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.errors import nearest

_PREFIX = "pocket-retrieval/"


@source
class PocketRetrieval:
    """Sets without splits of their own; the task retrieval splits them by classes."""

    name = "pocket_retrieval"
    title = "drawings of many kinds, 'pocket-retrieval/NAME'"

    def claims(self, config: DataConfig) -> Claim:
        if not config.source.startswith(_PREFIX):
            return Claim.NONE
        return Claim.LIKENESS if Path(config.source).exists() else Claim.MARK

    def names(self) -> Iterable[str]:
        from vpeft.data.pocket_retrieval import SETS

        return [_PREFIX + name for name in SETS]

    def read(self, config: DataConfig) -> Listing:
        # Late: the drawings are only needed when a set is asked for.
        from vpeft.data.pocket_retrieval import EACH, SETS, labels_of, pictures

        name = config.source.removeprefix(_PREFIX)
        if name not in SETS:
            raise DataError(f"pocket-retrieval has no set {name!r}. {nearest(name, SETS)}")
        labels, images = labels_of(name), pictures(name)
        listing = Listing(f"Expected: {self.title}.", labels=labels)
        for index in range(len(images)):
            label = labels[index // EACH]
            listing.add(None, Item(f"{label}/{index % EACH:02d}", label, ArrayPicture(images, index)))
        return listing
