"""Offline sets for applications, as 'pocket-applications/NAME': scans, quality of photographs, a catalogue."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpeft.data.config import DataConfig, TargetName
from vpeft.data.images import as_eight_bits
from vpeft.data.items import SPLITS, ArrayPicture, Item, Listing
from vpeft.data.pixels import Reading, range_of
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.errors import nearest

_PREFIX = "pocket-applications/"


@source
class PocketApplications:
    """Each set has its own splits and one kind of target."""

    name = "pocket-applications"
    title = "an offline set for an application, 'pocket-applications/NAME'"
    targets: tuple[TargetName, ...] = ("label", "labels", "values")

    def claims(self, config: DataConfig) -> Claim:
        if not config.source.startswith(_PREFIX):
            return Claim.NONE
        # A folder of that name may be meant instead: then neither is taken without asking.
        return Claim.LIKENESS if Path(config.source).exists() else Claim.MARK

    def names(self) -> Iterable[str]:
        from vpeft.data.pocket_applications import application_sets

        return [_PREFIX + name for name in application_sets()]

    def targets_in(self, config: DataConfig) -> tuple[TargetName, ...]:
        """The one kind of target that a set has."""
        from vpeft.data.pocket_applications import application_sets

        one = application_sets().get(config.source.removeprefix(_PREFIX))
        return self.targets if one is None else (one.target,)

    def read(self, config: DataConfig) -> Listing:
        # Late: the sets are only needed when one of them is asked for.
        from vpeft.data.pocket_applications import application_sets

        name, sets = config.source.removeprefix(_PREFIX), application_sets()
        if name not in sets:
            raise DataError(f"pocket-applications has no set {name!r}. {nearest(name, sets)}")
        one = sets[name]
        if config.target != one.target:
            raise DataError(f"{config.source} has no {config.target}; it has {one.target}.")
        listing = Listing(f"Expected: {self.title}.", labels=one.labels)
        # With "auto" the values stay as they are stored until the window is found.
        reading = Reading(config.channels or 3, "percentiles" if config.window == "auto" else config.window)
        for split in SPLITS:
            images, targets = one.split(split)
            if reading.plain:
                if (values := range_of(images)) is not None:
                    listing.values = values.joined(listing.values)
                images = as_eight_bits(images, f"{config.source}, {split}")
            for index, target in enumerate(targets):
                several = isinstance(target, tuple)
                text = ";".join(map(str, target)) if several else target
                value = target if several else None
                listing.add(split, Item(f"{split}/{index:05d}", text, ArrayPicture(images, index), value))
        return listing
