"""What is published about a data set, and what a copy on disk is compared with."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SetFacts(BaseModel):
    """Published numbers of one data set.

    Attributes:
        title: its name in tables.
        classes: how many there are.
        train, val, test: numbers of images; None where no number is published.
        licence: of the images, in the words of those who made them, or "none stated".
        source: an address, or the paper.
        notes: what users of the set should know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    classes: int
    train: int | None = None
    val: int | None = None
    test: int | None = None
    licence: str = "none stated"
    source: str = ""
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """The published numbers of images by split."""
        stated = {"train": self.train, "val": self.val, "test": self.test}
        return {split: number for split, number in stated.items() if number is not None}
