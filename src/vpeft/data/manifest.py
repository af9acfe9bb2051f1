"""What a run says about its data: counts, labels, and digests by which the same data is recognised again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from vpeft.data.config import TargetName
from vpeft.data.items import Item
from vpeft.data.problems import Problem
from vpeft.data.targets import Label, Target


class SplitManifest(BaseModel):
    """A split: `sha256` is that of its list (`listing`), `content` that of the images themselves, None if not read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    sha256: str
    content: str | None
    per_label: dict[str, int]
    made: bool


class DataManifest(BaseModel):
    """A data set as it was used. `split_seed` is None where every split was stated by the source.

    `target` is the kind of target, left out of the JSON and of the digest where it is one label. `labels` are then the
    classes, otherwise the names of the labels, of the values, or of the classes in masks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    layout: str
    labels: list[str]
    splits: dict[str, SplitManifest]
    split_seed: int | None
    problems: list[Problem]
    target: TargetName = "label"

    @model_serializer(mode="wrap")
    def _target_only_where_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        stated: dict[str, Any] = handler(self)
        if self.target == "label":  # as in every record that is older than the field
            stated.pop("target", None)
        return stated

    @property
    def digest(self) -> str:
        """What identifies the data, for run keys: labels, lists and contents; not where they lie on this machine."""
        parts: dict[str, Any] = {
            "labels": self.labels,
            "splits": {name: [split.sha256, split.content] for name, split in sorted(self.splits.items())},
        }
        if self.target != "label":
            parts["target"] = self.target
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def listing(items: Sequence[Item]) -> str:
    """One line per image, its name and its label with a tab between, sorted: the text that is hashed and stored."""
    return "".join(sorted(f"{item.name}\t{item.label}\n" for item in items))


def split_manifest(
    items: Sequence[Item],
    content: Mapping[str, str],
    *,
    made: bool,
    target: Target | None = None,
    labels: Sequence[str] = (),
    masks: Mapping[str, str] | None = None,
) -> SplitManifest:
    """The manifest of one split.

    Args:
        items: of the split.
        content: the sha256 of each image by name, "" where it was not read.
        made: whether vpeft made the split.
        target: what is known of each image; one label by default.
        labels: of the data set.
        masks: the sha256 of each mask by the image's name.
    """
    known = all(content.get(item.name) for item in items) and all((masks or {}).values())
    digests = sorted(f"{item.name}\t{content[item.name]}" for item in items) if known else []
    if known and masks:
        digests += sorted(f"{item.name}\tmask\t{masks[item.name]}" for item in items)
    per_label: dict[str, int] = {}
    if target is None or isinstance(target, Label):
        for item in sorted(items, key=lambda item: item.label):
            per_label[item.label] = per_label.get(item.label, 0) + 1
    elif target.name != "values":
        per_label = {label: count for label, count in sorted(target.counts(items, labels).items()) if count}
    return SplitManifest(
        count=len(items),
        sha256=hashlib.sha256(listing(items).encode()).hexdigest(),
        content=hashlib.sha256("\n".join(digests).encode()).hexdigest() if known else None,
        per_label=per_label,
        made=made,
    )
