"""The objects of one image: boxes, classes, which are crowds, and shapes that become masks when somebody needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpeft.data.items import Picture
from vpeft.data.pixels import UnreadableImage
from vpeft.errors import need_extra


class Shape(Protocol):
    """The pixels of one object, decoded late. Instances are pickled to data-loading workers."""

    def mask(self, height: int, width: int) -> NDArray[np.uint8]:
        """1 on the object, 0 elsewhere, uint8 (height, width) of the image. Raises `UnreadableImage`."""


@dataclass(frozen=True, slots=True)
class Polygons:
    """One or several polygons, each x, y, x, y, ... in pixels; the object is their union."""

    parts: tuple[tuple[float, ...], ...]

    def mask(self, height: int, width: int) -> NDArray[np.uint8]:
        codec = _codec()
        try:
            return _plain(
                codec.decode(codec.merge(codec.frPyObjects([list(one) for one in self.parts], height, width)))
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise UnreadableImage(f"a polygon cannot be drawn: {error}") from error


@dataclass(frozen=True, slots=True)
class RunLengths:
    """COCO's run-length code of a mask: lengths of runs of 0 and 1 down the columns, as numbers or compressed."""

    height: int
    width: int
    counts: bytes | tuple[int, ...]

    def mask(self, height: int, width: int) -> NDArray[np.uint8]:
        if (height, width) != (self.height, self.width):
            raise UnreadableImage(
                f"a run-length code is of {self.width} x {self.height} for an image of {width} x {height}"
            )
        codec = _codec()
        code: Mapping[str, Any] = {"size": [height, width], "counts": self.counts}
        if not isinstance(self.counts, bytes):
            if sum(self.counts) != height * width or min(self.counts, default=0) < 0:
                raise UnreadableImage(
                    f"a run-length code has {sum(self.counts)} pixels for an image of {width} x {height}"
                )
            code = codec.frPyObjects([{"size": [height, width], "counts": list(self.counts)}], height, width)[0]
        try:
            return _plain(codec.decode(code))
        except (ValueError, TypeError, RuntimeError) as error:
            raise UnreadableImage(f"a run-length code is damaged: {error}") from error


@dataclass(frozen=True, slots=True)
class PixelsWithNumber:
    """The pixels that hold one number in a picture of the image's size, which several objects share."""

    picture: Picture
    number: int

    def mask(self, height: int, width: int) -> NDArray[np.uint8]:
        return self.among(self.picture.numbers(), height, width)

    def among(self, numbers: NDArray[np.integer[Any]], height: int, width: int) -> NDArray[np.uint8]:
        """The mask out of the numbers (height, width) of the picture; raises `UnreadableImage` for another size."""
        if numbers.shape != (height, width):
            raise UnreadableImage(
                f"the masks are of {numbers.shape[1]} x {numbers.shape[0]} for an image of {width} x {height}"
            )
        made: NDArray[np.uint8] = (numbers == self.number).astype(np.uint8)
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """The objects of one image as a source gives them, in pixels of the image file.

    Attributes:
        boxes: float32 (N, 4), left, top, right, bottom.
        labels: the name of each object's class.
        crowd: bool (N,), whether a box holds a crowd of objects that are not told apart.
        shapes: of each object, None where it has a box alone; None for all where the source has no shapes.
        size: (H, W) of the image where the source states it.
    """

    boxes: NDArray[np.float32]
    labels: tuple[str, ...]
    crowd: NDArray[np.bool_]
    shapes: tuple[Shape | None, ...] | None = None
    size: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        boxes: Sequence[Sequence[float]],
        labels: Sequence[str],
        *,
        crowd: Sequence[bool] | None = None,
        shapes: Sequence[Shape | None] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Self:
        """Objects out of plain lists; `crowd` is False for all by default."""
        marks = np.zeros(len(labels), bool) if crowd is None else np.asarray(crowd, bool)
        with_shapes = shapes is not None and any(shape is not None for shape in shapes)
        return cls(
            np.asarray(boxes, np.float32).reshape(-1, 4),
            tuple(labels),
            marks,
            tuple(shapes) if shapes is not None and with_shapes else None,
            size,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def among(self, kept: NDArray[np.bool_]) -> Objects:
        """Those objects for which `kept` (N,) is true."""
        places = np.flatnonzero(kept)
        shapes = None if self.shapes is None else tuple(self.shapes[place] for place in places)
        labels = tuple(self.labels[place] for place in places)
        return replace(self, boxes=self.boxes[kept], labels=labels, crowd=self.crowd[kept], shapes=shapes)

    def numbered(self, number: Mapping[str, int]) -> ImageObjects:
        """The objects as tensors, with the number of each class."""
        return ImageObjects(
            torch.from_numpy(self.boxes.copy()),
            torch.tensor([number[label] for label in self.labels], dtype=torch.int64),
            torch.from_numpy(self.crowd.copy()),
            self.shapes,
        )


@dataclass(frozen=True, slots=True, eq=False)
class ImageObjects:
    """The objects of one image as a transform takes them.

    Attributes:
        boxes: float32 (N, 4), left, top, right, bottom in pixels of the image.
        labels: int64 (N,), class numbers from 0.
        crowd: bool (N,).
        shapes: of each object; None where there are none.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    shapes: tuple[Shape | None, ...] | None = None

    @classmethod
    def none(cls) -> Self:
        """No objects at all, for an image whose objects are to be predicted."""
        return cls(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))

    def masks(self, height: int, width: int) -> Tensor | None:
        """Masks uint8 (N, height, width) of the image; None where the source has no shapes.

        An object without a shape among others that have one gets its filled box. Raises `UnreadableImage`.
        """
        if self.shapes is None:
            return None
        read: dict[int, NDArray[np.integer[Any]]] = {}
        made = np.zeros((len(self.shapes), height, width), np.uint8)
        for place, shape in enumerate(self.shapes):
            if shape is None:
                left, top, right, bottom = self.boxes[place].round().int().clamp(min=0).tolist()
                made[place, top:bottom, left:right] = 1
            elif isinstance(shape, PixelsWithNumber):
                if id(shape.picture) not in read:  # one file for all objects of an image
                    read[id(shape.picture)] = shape.picture.numbers()
                made[place] = shape.among(read[id(shape.picture)], height, width)
            else:
                made[place] = shape.mask(height, width)
        return torch.from_numpy(made)


def _codec() -> Any:
    return need_extra("faster_coco_eval.core.mask", "dense")


def _plain(mask: Any) -> NDArray[np.uint8]:
    """A decoded mask (H, W) or (H, W, 1) as (H, W) in the order of rows."""
    values = np.asarray(mask, np.uint8)
    return np.ascontiguousarray(values[..., 0] if values.ndim == 3 else values)
