"""Which images a training used: kept in the adapter file, so that an evaluation scores the others.

An image is known by the start of the sha256 of its content, so that it is found again in a folder that was moved, in a
list, or under another name.
"""

from __future__ import annotations

import base64
import binascii
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from vpeft.data.items import Item, SplitName
from vpeft.data.problems import DataWarning

# 32 bits for an image: 2 in a million images that were not used are taken for one of 10,000 that were.
MARK = np.dtype(">u4")
# Images whose marks are kept, 54 kB of text; of larger sets every second, third ... mark, which still tells the share.
MOST = 10_000


class Marks(BaseModel):
    """The marks of some images.

    Attributes:
        count: number of images.
        every: only marks that this number divides are kept; 1 keeps all.
        text: the marks in ascending order, as base64 of big-endian 32-bit numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(ge=0)
    every: int = Field(default=1, ge=1)
    text: str = Field(max_length=100_000)

    @field_validator("text")
    @classmethod
    def _whole_marks(cls, text: str) -> str:
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("the marks of images are no base64") from None
        if len(data) % MARK.itemsize:
            raise ValueError("the marks of images are cut off")
        return text

    @classmethod
    def of(cls, contents: Iterable[str]) -> Marks:
        """The marks of images with these digests, in hexadecimal."""
        numbers = np.array(sorted({_number(content) for content in contents if content}), dtype=MARK)
        every = -(-len(numbers) // MOST) or 1
        kept = numbers[numbers % every == 0]
        return cls(count=len(numbers), every=every, text=base64.b64encode(kept.tobytes()).decode())

    @cached_property
    def _numbers(self) -> frozenset[int]:
        return frozenset(np.frombuffer(base64.b64decode(self.text), dtype=MARK).tolist())

    def joined(self, other: Marks) -> Marks:
        """The marks of the images of both."""
        every = math.lcm(self.every, other.every)
        numbers = np.array(sorted(self._numbers | other._numbers), dtype=MARK)
        while np.count_nonzero(numbers % every == 0) > MOST:
            every *= 2
        text = base64.b64encode(numbers[numbers % every == 0].tobytes()).decode()
        return Marks(count=self.count + other.count, every=every, text=text)

    def has(self, content: str) -> bool:
        """Whether the image with this digest is among those whose marks are kept."""
        return bool(content) and _number(content) in self._numbers


class UsedImages(BaseModel):
    """The images of a training: those it learnt from, and those that chose its epoch or its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Marks
    val: Marks | None = None
    val_classes: tuple[str, ...] = ()
    """the classes of validation, where splits are made of classes: none of them is in the test"""

    @model_serializer(mode="wrap")
    def _classes_only_where_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        stated: dict[str, Any] = handler(self)
        if not self.val_classes:  # as in files that are older than the field
            stated.pop("val_classes", None)
        return stated

    @classmethod
    def of(
        cls, splits: Mapping[SplitName, Sequence[Item]], content: Mapping[str, str], by_classes: bool = False
    ) -> UsedImages | None:
        """The images of the splits `train` and `val`; None where no image was read.

        Args:
            splits: the images of each split.
            content: the sha256 of each by name.
            by_classes: whether the splits have classes of their own, so that those of validation are kept, too.
        """
        train, val = ([content.get(item.name, "") for item in splits.get(name, ())] for name in ("train", "val"))
        if not any(train):
            return None
        classes = tuple(dict.fromkeys(item.label for item in splits.get("val", ()))) if by_classes else ()
        return cls(train=Marks.of(train), val=Marks.of(val) if any(val) else None, val_classes=classes)

    def of_split(self, split: SplitName) -> Marks | None:
        """The marks of the images of one split; None for the test and for a validation without images."""
        return {"train": self.train, "val": self.val, "test": None}[split]

    def joined(self, other: UsedImages | None) -> UsedImages:
        """The images of both trainings."""
        if other is None:
            return self
        val = [one for one in (self.val, other.val) if one is not None]
        return UsedImages(
            train=self.train.joined(other.train),
            val=val[0].joined(val[1]) if len(val) > 1 else next(iter(val), None),
            val_classes=tuple(dict.fromkeys((*self.val_classes, *other.val_classes))),
        )

    def held_out(self, items: Sequence[Item], content: Mapping[str, str], *, stated: bool) -> list[Item]:
        """The images that the training did not use; a `DataWarning` says what was left out, or that all were used.

        Args:
            items: the images to evaluate on.
            content: the sha256 of each by name.
            stated: whether the source itself says that they are for validation or for tests.
        """
        trained = [item for item in items if self.train.has(content.get(item.name, ""))]
        if self.train.every > 1:
            if trained:
                share = min(1.0, len(trained) * self.train.every / len(items))
                _say(
                    f"About {share:.0%} of these {len(items)} images were trained on, so the scores are too good. Name"
                    " images that were not."
                )
            return list(items)
        chosen = [item for item in items if self.val is not None and self.val.has(content.get(item.name, ""))]
        if not trained and (stated or not chosen):
            return list(items)
        used = {item.name for item in (*trained, *chosen)}
        fresh = [item for item in items if item.name not in used]
        if not fresh:
            names = {item.name for item in trained}
            fresh = [item for item in items if item.name not in names]
            if not fresh:
                _say(
                    f"All {len(items)} images were used in training, so these scores say nothing about new images. Name"
                    " images that were not."
                )
                return list(items)
            _say(
                f"{len(trained)} of the {len(items)} images were trained on and are left out; the other {len(fresh)}"
                " chose the epoch or the settings, so the scores may be too good. --include-used scores all."
            )
            return fresh
        _say(
            f"{len(items) - len(fresh)} of the {len(items)} images were used in training and are left out; the other"
            f" {len(fresh)} are scored. --include-used scores all."
        )
        return fresh


def _number(content: str) -> int:
    return int(content[:8], 16)


def _say(sentence: str) -> None:
    warnings.warn(sentence, DataWarning, stacklevel=4)
