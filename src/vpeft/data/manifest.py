"""What a run says about its data: counts, labels, and digests by which the same data is recognised again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from vpeft.data.items import Item
from vpeft.data.problems import Problem


class SplitManifest(BaseModel):
    """A split: `sha256` is that of its list (`listing`), `content` that of the images themselves, None if not read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    sha256: str
    content: str | None
    per_label: dict[str, int]
    made: bool


class DataManifest(BaseModel):
    """A data set as it was used. `split_seed` is None where every split was stated by the source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    layout: str
    labels: list[str]
    splits: dict[str, SplitManifest]
    split_seed: int | None
    problems: list[Problem]

    @property
    def digest(self) -> str:
        """What identifies the data, for run keys: labels, lists and contents; not where they lie on this machine."""
        parts = {
            "labels": self.labels,
            "splits": {name: [split.sha256, split.content] for name, split in sorted(self.splits.items())},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def listing(items: Sequence[Item]) -> str:
    """One line per image, its name and its label with a tab between, sorted: the text that is hashed and stored."""
    return "".join(sorted(f"{item.name}\t{item.label}\n" for item in items))


def split_manifest(items: Sequence[Item], content: Mapping[str, str], *, made: bool) -> SplitManifest:
    """The manifest of one split; `content` maps names to the sha256 of the images, "" where they were not read."""
    known = all(content.get(item.name) for item in items)
    digests = sorted(f"{item.name}\t{content[item.name]}" for item in items) if known else []
    per_label: dict[str, int] = {}
    for item in sorted(items, key=lambda item: item.label):
        per_label[item.label] = per_label.get(item.label, 0) + 1
    return SplitManifest(
        count=len(items),
        sha256=hashlib.sha256(listing(items).encode()).hexdigest(),
        content=hashlib.sha256("\n".join(digests).encode()).hexdigest() if known else None,
        per_label=per_label,
        made=made,
    )
