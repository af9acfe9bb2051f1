"""What can be wrong with a data set, said by name and counted.

A problem that still leaves something to train on is kept in a `Problems` log, shown once per kind as a `DataWarning`,
and stored in the data manifest. With `strict` the same problem is a `DataError`.
"""

from __future__ import annotations

import warnings
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vpeft.errors import VpeftError

Kind = Literal[
    "missing",
    "unreadable",
    "ignored",
    "empty_class",
    "unseen_class",
    "duplicate",
    "contradiction",
    "unlabelled",
    "split",
    "hidden",
    "linked",
    "closed",
    "dark",
    "missing_mask",
    "mask_size",
    "mask_value",
    "missing_depth",
    "depth_size",
    "depth_value",
    "image_size",
    "box_number",
    "box_area",
    "box_outside",
    "box_cut",
    "shape",
    "shape_size",
    "unknown_category",
    "unknown_image",
    "same_id",
    "same_object",
    "no_objects",
    "unreadable_clip",
    "cut_off",
    "uneven_rate",
]

_TITLES: dict[str, str] = {
    "missing": "files are listed but do not exist; they are skipped",
    "unreadable": "files cannot be read as images; they are skipped",
    "ignored": "files are not of an image format and are ignored",
    "empty_class": "classes have no image and are left out of the labels",
    "unseen_class": "classes have no training image, so no model can learn them",
    "duplicate": "images are in more than one split, so scores on them say nothing",
    "contradiction": "images appear under more than one label",
    "unlabelled": "images carry no label and are skipped",
    "split": "splits are not as asked",
    "hidden": "folders of images that belong to other programs are left out",
    "linked": "links to folders are not followed, and what they lead to is left out",
    "closed": "folders cannot be opened, and what is in them is left out",
    "dark": "groups of images use a small part of their range and come out nearly black",
    "missing_mask": "images have no mask and are skipped",
    "mask_size": "masks have another size than their image; both are skipped",
    "mask_value": "masks hold numbers that stand for no class; they and their images are skipped",
    "missing_depth": "images have no depth map and are skipped",
    "depth_size": "depth maps have another size than their image; both are skipped",
    "depth_value": "depth maps hold no depth above 0; they and their images are skipped",
    "image_size": "images have another size than their annotations say; they are skipped",
    "box_number": "images have boxes with a number that is not finite; these boxes are removed",
    "box_area": "images have boxes without an area; these boxes are removed",
    "box_outside": "images have boxes that lie outside of them; these boxes are removed",
    "box_cut": "images have boxes that reach over their border by more than a pixel; the boxes are cut there",
    "shape": "images have objects whose shape cannot be drawn; the whole box counts as their mask",
    "shape_size": "images have masks of another size; they are skipped",
    "unknown_category": "category numbers have no name; their objects are removed",
    "unknown_image": "annotations are of images that are not listed; they are left out",
    "same_id": "annotations have the id of another one; all are kept",
    "same_object": "images state the same box of the same class more than once; it is kept once",
    "no_objects": "images have no object; they are kept as background",
    "unreadable_clip": "files cannot be read as clips; they are skipped",
    "cut_off": "videos are damaged or end early; the frames that can be decoded are used",
    "uneven_rate": "videos change their frame rate; their frames are taken by number",
}

# These say something about the files, not about the labels: worth a note in the record, never a reason to stop.
_NOTES: frozenset[str] = frozenset({"ignored"})

# Said, since somebody may miss them, and no reason to stop either.
_HARMLESS: frozenset[str] = frozenset({"hidden", "linked", "no_objects", "uneven_rate"})


class DataError(VpeftError):
    """The data set cannot be used as it is; the message says what was found and what to do."""


class DataWarning(UserWarning):
    """The data set can be used, but something in it is not as it should be."""


class Problem(BaseModel):
    """One thing that is wrong: its `kind`, the `name` of the file or class it is about, and the `detail`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


class Problems:
    """The problems of one data set, in the order in which they were found."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, kind: Kind, name: str, detail: str = "") -> None:
        self.found.append(Problem(kind=kind, name=name, detail=detail))

    def of(self, *kinds: Kind) -> list[Problem]:
        """The problems of these kinds."""
        return [problem for problem in self.found if problem.kind in kinds]

    def sentence(self, kind: Kind, shown: int = 5) -> str:
        """What is wrong, how often, and the first few names."""
        of_kind = self.of(kind)
        names = "; ".join(str(problem) for problem in of_kind[:shown])
        more = f"; and {len(of_kind) - shown} more" if len(of_kind) > shown else ""
        return f"{len(of_kind)} {_TITLES[kind]}: {names}{more}"

    def report(self, source: str, *, strict: bool) -> None:
        """Warn once per kind, or raise `DataError` with all of it when `strict`. Notes stay in the log alone."""
        kinds = [kind for kind in dict.fromkeys(problem.kind for problem in self.found) if kind not in _NOTES]
        if not kinds:
            return
        sentences = [f"{source}: {self.sentence(kind)}." for kind in kinds]
        if strict and not _HARMLESS.issuperset(kinds):
            raise DataError("\n".join([*sentences, "Mend the data, or run without strict to go on with a warning."]))
        for sentence in sentences:
            warnings.warn(sentence, DataWarning, stacklevel=4)
