"""Images that are decoded and resized already: what is the same in every epoch is read from rows of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from vpeft.data.image_set import ImageSet, Transform
from vpeft.data.preprocessing import AsPicture, CropTo, ResizeTo


def parted(transform: Any) -> tuple[list[nn.Module], list[nn.Module], tuple[int, int] | None]:
    """The steps of a transform that are the same each time, the rest, and the size (H, W) between them.

    The size is None where there are no such steps, or where it depends on the image.
    """
    steps: list[nn.Module] = list(transform.transforms) if isinstance(transform, v2.Compose) else []
    count = next((i for i, step in enumerate(steps) if not isinstance(step, (AsPicture, ResizeTo, CropTo))), len(steps))
    if any(isinstance(step, AsPicture) and step.channels != 3 for step in steps):
        return [], steps, None  # kept pixels are eight-bit RGB
    last: Any = steps[count - 1] if count else None
    fixed = isinstance(last, CropTo) or (isinstance(last, ResizeTo) and last.how == "squash")
    size = (int(last.size[0]), int(last.size[1])) if fixed else None
    return steps[:count], steps[count:], size


class FittedImages(ImageSet):
    """The images of another set, read from `rows`, uint8 (N, H, W, 3); the rest of its transform follows.

    Item i is the very tensor that the other set gives in the same epoch: what draws at random draws the same numbers.
    """

    plain: ImageSet
    rows: Tensor
    first: list[nn.Module]

    @classmethod
    def of(cls, images: ImageSet, rows: Tensor, rest: Sequence[nn.Module]) -> Self:
        """`rows` hold what the first steps of the transform of `images` make; `rest` are the other steps."""
        twin = object.__new__(cls)
        twin.__dict__.update(images.with_transform(v2.Compose(list(rest))).__dict__)
        twin.plain, twin.rows = images, rows
        twin.first = parted(images.transform)[0]
        return twin

    def image(self, index: int) -> Image.Image:
        """Image `index` as it is after the first steps."""
        return Image.fromarray(self.rows[index].numpy())

    def drawn(self, index: int) -> Any:
        """The mask of image `index` as it is after the first steps, which are the same each time."""
        mask = self.plain.drawn(index)
        for step in self.first if mask is not None else ():
            mask = step(mask)
        return mask

    def with_transform(self, transform: Transform | None) -> ImageSet:  # type: ignore[override]
        """The images at their own size through another transform."""
        return self.plain.with_transform(transform)

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """The images at `indices` of the other set."""
        return self.plain.subset(indices)

    def relabelled(self, labels: Sequence[str]) -> ImageSet:
        """The images of the other set, with targets in the order of other labels."""
        return self.plain.relabelled(labels)
