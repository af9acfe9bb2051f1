"""Read several maps of each image from a source that gives each kind by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vpeft.data.config import DataConfig
from vpeft.data.items import SPLITS, Item, Listing
from vpeft.data.joined_maps import Several, SeveralMaps
from vpeft.data.sources.registry import Source
from vpeft.data.target import JOIN, target_of


def read_listing(source: Source, config: DataConfig) -> Listing:
    """What a source lists for the kind of target in `config`, or for several kinds: the images that have each.

    Raises:
        DataError: no image has all of them; or as the source.
    """
    if JOIN not in config.target:
        return source.read(config)
    target = target_of(config)
    assert isinstance(target, Several)  # as its name says
    each = {kind: source.read(config.model_copy(update={"target": kind})) for kind in target.kinds}
    first, *others = each.values()
    labels = {kind: None if one.labels is None else list(one.labels) for kind, one in each.items()}
    classes = {kind: len(names) if names else None for kind, names in labels.items()}
    stated = [f"{kind}/{name}" for kind, names in labels.items() for name in names or ()]
    made = replace(first, labels=stated or None, whole=[], splits={})

    def of(listing: Listing, split: Any) -> dict[str, Item]:
        return {item.name: item for item in (listing.whole if split is None else listing.splits.get(split, ()))}

    for split in (None, *SPLITS):
        found = {kind: of(one, split) for kind, one in each.items()}
        for item in of(first, split).values():
            lacking = [kind for kind, items in found.items() if item.name not in items]
            if lacking:
                made.problems.add("missing_mask", item.name, f"it has no {lacking[0]}")
                continue
            parts = {kind: items[item.name].target for kind, items in found.items()}
            made.add(split, replace(item, target=SeveralMaps(parts, classes)))
    for other in others:
        known = {(one.kind, one.name) for one in made.problems.found}
        for one in other.problems.found:
            if (one.kind, one.name) not in known:
                made.problems.add(one.kind, one.name, one.detail)
    return made
