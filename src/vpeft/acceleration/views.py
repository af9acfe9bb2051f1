"""A fixed number k of augmented views of each image, so that the frozen part can be cached with augmentation too.

In epoch e, training uses view e mod k of each image. The result depends on k, and not on whether a cache is used. If k
is the number of epochs, the result is that of ordinary augmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vpeft.acceleration.prefix_cache import RowNumbers
from vpeft.acceleration.same_images import ImageSource, why_not_the_same
from vpeft.batch import Batch, Sample
from vpeft.data.image_set import ImageSet
from vpeft.errors import VpeftError


class NoViews(VpeftError):
    """A data set whose transform cannot be repeated, so that it has no fixed views."""


class Views:
    """All views of all images, one view after the other: item v * len(images) + i is image i in view v.

    Args:
        images: an image set whose random transforms depend on the epoch and the image only.
        told: for each view, the epoch whose random numbers it uses.
    """

    def __init__(self, images: ImageSet, told: Sequence[int]) -> None:
        self.images, self.told, self.labels = images, list(told), images.labels
        if isinstance(images.targets, list):  # masks are not listed: they would all be decoded
            self.targets: list[Any] = images.targets * len(self.told)

    def __len__(self) -> int:
        return len(self.images) * len(self.told)

    def __getitem__(self, index: int, /) -> Any:
        view, image = divmod(range(len(self))[index], len(self.images))
        self.images.set_epoch(self.told[view])
        return self.images[image]

    @property
    def identity(self) -> dict[str, object]:
        """Everything that the views depend on, besides the images and their transform."""
        return {"views": self.told, "seed": self.images.seed}


class ViewByView:
    """The cache rows of `Views` as a data set of one view, which changes with the epoch."""

    def __init__(self, records: RowNumbers, views: Views) -> None:
        self.records, self.count, self.labels = records, len(views.images), records.labels
        self.targets = records.targets[: self.count]  # the same for every view
        self._first = {told: view * self.count for view, told in enumerate(views.told)}
        self._at = 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, told: int) -> None:
        """Select the view that uses the random numbers of epoch `told`."""
        self._at = self._first[told]

    def __getitem__(self, index: int, /) -> Sample:
        return self.records[self._at + range(self.count)[index]]

    def batch_of(self, indices: list[int]) -> Batch:
        """Return several samples as a batch: row numbers (B,) and targets."""
        return self.records.batch_of([self._at + index for index in indices])


def views_of(images: ImageSource, told: Sequence[int]) -> ImageSource:
    """Return the views of `images`, or `images` themselves if their transform is not random.

    Raises:
        NoViews: reading an image again in the same epoch may give another result.
    """
    if why_not_the_same(images) is None:
        return images
    if not isinstance(images, ImageSet):
        raise NoViews(
            "views needs vpeft's own image sets, whose random transforms are a function of the epoch and the image."
            " Leave it out, or give images from `open_data`, an ImageSet or an ArraySet."
        )
    return Views(images, told)
