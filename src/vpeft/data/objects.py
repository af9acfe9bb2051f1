"""The objects of one image: boxes, classes, which are crowds, and shapes that become masks when somebody needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpeft.data.items import Picture, digest
from vpeft.data.on_pixels import CheckDepth, CheckedTarget, Note, OnPixels, Size
from vpeft.data.pixels import UnreadableImage
from vpeft.data.problems import Kind
from vpeft.errors import need_extra

# The largest coordinate of a polygon: memory for drawing one grows with its length.
FARTHEST = 1e6


class Shape(Protocol):
    """The pixels of one object, decoded late. Instances are pickled to data-loading workers."""

    def mask(self, height: int, width: int) -> NDArray[np.uint8]:
        """1 on the object, 0 elsewhere, uint8 (height, width) of the image. Raises `UnreadableImage`."""


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """One or several polygons, each x, y, x, y, ... in pixels; the object is their union.

    They are arrays, since a large set has a hundred million coordinates.
    """

    parts: tuple[NDArray[np.float64], ...]

    @classmethod
    def of(cls, parts: Sequence[Sequence[float]]) -> Self:
        """Polygons out of plain lists."""
        return cls(tuple(np.asarray(part, np.float64) for part in parts))

    def mask(self, height: int, width: int) -> NDArray[np.uint8]:
        if not all((np.abs(part) <= FARTHEST).all() for part in self.parts):
            raise UnreadableImage(f"a polygon has a point farther out than {FARTHEST:g} pixels")
        codec = _codec()
        try:
            parts = codec.frPyObjects([one.tolist() for one in self.parts], height, width)
            return _plain(codec.decode(codec.merge(parts)))
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


# Boxes may reach over the border by so many pixels without a word, as rounded ones do.
TOLERANCE = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Objects(OnPixels):
    """The objects of one image as a source gives them, in pixels of the image file.

    Attributes:
        boxes: float32 (N, 4), left, top, right, bottom.
        labels: the name of each object's class.
        crowd: bool (N,), whether a box holds a crowd of objects that are not told apart.
        shapes: of each object, None where it has a box alone; None for all where the source has no shapes.
        size: (H, W) of the image where the source states it.
        areas: float64 (N,), pixels of each object as the source states them, by which scores tell small objects from
            large ones; 0 where it does not say. None where it says nothing of any.
    """

    boxes: NDArray[np.float32]
    labels: tuple[str, ...]
    crowd: NDArray[np.bool_]
    shapes: tuple[Shape | None, ...] | None = None
    size: tuple[int, int] | None = None
    areas: NDArray[np.float64] | None = None

    @classmethod
    def of(
        cls,
        boxes: Sequence[Sequence[float]],
        labels: Sequence[str],
        *,
        crowd: Sequence[bool] | None = None,
        shapes: Sequence[Shape | None] | None = None,
        size: tuple[int, int] | None = None,
        areas: Sequence[float] | None = None,
    ) -> Self:
        """Objects out of plain lists; `crowd` is False for all by default, an area that is no positive number is 0."""
        marks = np.zeros(len(labels), bool) if crowd is None else np.asarray(crowd, bool)
        with_shapes = shapes is not None and any(shape is not None for shape in shapes)
        return cls(
            np.asarray(boxes, np.float32).reshape(-1, 4),
            tuple(labels),
            marks,
            tuple(shapes) if shapes is not None and with_shapes else None,
            size,
            _stated_areas(areas),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def among(self, kept: NDArray[np.bool_]) -> Objects:
        """Those objects for which `kept` (N,) is true."""
        places = np.flatnonzero(kept)
        shapes = None if self.shapes is None else tuple(self.shapes[place] for place in places)
        labels = tuple(self.labels[place] for place in places)
        areas = None if self.areas is None else self.areas[kept]
        return replace(self, boxes=self.boxes[kept], labels=labels, crowd=self.crowd[kept], shapes=shapes, areas=areas)

    def checked(self, depth: CheckDepth, size: Size | None, classes: int | None) -> CheckedTarget:
        """Look at boxes and shapes, and mend the boxes; shapes are decoded where images are.

        Boxes that have no area, lie outside, or hold a number that is not finite are removed, others are cut at the
        border, and the same box of the same class counts once. Another size than stated is a fault.
        """
        if size is not None and self.size is not None and size != self.size:
            turned = ", perhaps since its EXIF data turn it" if size == self.size[::-1] else ""
            detail = f"{size[1]} x {size[0]}, and {self.size[1]} x {self.size[0]} is stated{turned}"
            return CheckedTarget(self, fault=("image_size", detail))
        known = size or self.size
        try:
            content = self._digest(depth)
            fault = None if known is None or depth != "decode" else self._shape_fault(*known)
        except (UnreadableImage, OSError) as error:
            return CheckedTarget(self, unreadable=f"its masks: {error}")
        if fault is not None:
            return CheckedTarget(self, content, fault=("shape_size", fault))
        mended, notes = self._mended(known)
        return CheckedTarget(mended, content, notes=tuple(notes), boxes=self._fitting(known))

    def _mended(self, size: Size | None) -> tuple[Objects, list[Note]]:
        """The objects without those that cannot be, their boxes cut at the border; and what was done."""
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(self.boxes).all(axis=1))
        area: NDArray[np.bool_] = finite & np.asarray((self.boxes[:, 2:] > self.boxes[:, :2]).all(axis=1))
        cut = self.boxes
        inside: NDArray[np.bool_] = np.ones(len(self), bool)
        over = np.zeros(len(self), np.float32)
        if size is not None:
            limits = np.array([size[1], size[0], size[1], size[0]], np.float32)
            cut = np.clip(self.boxes, 0, limits)
            inside = np.asarray((cut[:, 2:] > cut[:, :2]).all(axis=1))
            over = np.abs(np.where(finite[:, None], self.boxes, 0) - np.where(finite[:, None], cut, 0)).max(
                axis=1, initial=0
            )
        seen: set[tuple[Any, ...]] = set()
        first = np.zeros(len(self), bool)
        for place in np.flatnonzero(area & inside):
            key = (*cut[place].tolist(), self.labels[place], bool(self.crowd[place]))
            first[place] = key not in seen
            seen.add(key)
        found: list[tuple[Kind, NDArray[np.bool_]]] = [
            ("box_number", ~finite),
            ("box_area", finite & ~area),
            ("box_outside", area & ~inside),
            ("box_cut", area & inside & (over > TOLERANCE)),
            ("same_object", area & inside & ~first),
        ]
        notes = [Note(kind, self._shown(where)) for kind, where in found if where.any()]
        mended = replace(self, boxes=cut).among(first)
        if not len(mended):
            notes.append(Note("no_objects", ""))
        return mended, notes

    def _shown(self, where: NDArray[np.bool_]) -> str:
        """How many objects there are, and the first of them."""
        places = np.flatnonzero(where)
        box = ", ".join(f"{one:g}" for one in self.boxes[places[0]])
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        return f"{self.labels[places[0]]} at {box}{more}"

    def _fitting(self, size: Size | None) -> tuple[int, int, int]:
        """See `CheckedTarget.boxes`."""
        if size is None:
            return 0, 0, 0
        left_top, right_bottom = self.boxes[:, :2], self.boxes[:, 2:]

        def fits(ends: NDArray[np.float32]) -> NDArray[np.bool_]:
            inside = (ends <= np.array([size[1], size[0]]) + TOLERANCE) & (ends > left_top) & (left_top >= -TOLERANCE)
            return np.asarray(inside.all(axis=1))

        with np.errstate(invalid="ignore"):
            wrong = ~fits(right_bottom)
            otherwise = wrong & (fits(right_bottom - left_top) | fits(right_bottom + left_top))
        return len(self), int(wrong.sum()), int(otherwise.sum())

    def _shape_fault(self, height: int, width: int) -> str | None:
        """Which mask has another size than the image; raises `UnreadableImage` for a damaged one."""
        looked: set[int] = set()
        for shape in self.shapes or ():
            if isinstance(shape, PixelsWithNumber) and id(shape.picture) in looked:
                continue
            if isinstance(shape, PixelsWithNumber):
                looked.add(id(shape.picture))
                found: Size = shape.picture.numbers().shape[:2]
            elif isinstance(shape, RunLengths):
                found = (shape.height, shape.width)
                if found == (height, width):
                    shape.mask(height, width)
            else:
                continue
            if found != (height, width):
                return f"{found[1]} x {found[0]} for an image of {width} x {height}"
        return None

    def _digest(self, depth: CheckDepth) -> str:
        """sha256 of boxes, classes, crowds and shapes; of pictures of masks where files are read."""
        parts = [self.boxes.tobytes(), repr(self.labels).encode(), self.crowd.tobytes()]
        pictures: dict[int, str] = {}
        for shape in self.shapes or ():
            if isinstance(shape, Polygons):
                parts += [b"polygons", *(part.tobytes() for part in shape.parts)]
                continue
            if not isinstance(shape, PixelsWithNumber):
                parts.append(repr(shape).encode())
                continue
            if id(shape.picture) not in pictures:
                pictures[id(shape.picture)] = digest(shape.picture.content()) if depth != "none" else ""
            parts.append(f"{shape.number} of {pictures[id(shape.picture)]}".encode())
        return digest(b"\n".join(parts)) if depth != "none" else ""

    def numbered(self, number: Mapping[str, int]) -> ImageObjects:
        """The objects as tensors, with the number of each class."""
        return ImageObjects(
            torch.from_numpy(self.boxes.copy()),
            torch.tensor([number[label] for label in self.labels], dtype=torch.int64),
            torch.from_numpy(self.crowd.copy()),
            self.shapes,
            None if self.areas is None else torch.from_numpy(self.areas.copy()),
        )


@dataclass(frozen=True, slots=True, eq=False)
class ImageObjects:
    """The objects of one image as a transform takes them.

    Attributes:
        boxes: float32 (N, 4), left, top, right, bottom in pixels of the image.
        labels: int64 (N,), class numbers from 0.
        crowd: bool (N,).
        shapes: of each object; None where there are none.
        areas: float64 (N,), see `Objects`.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    shapes: tuple[Shape | None, ...] | None = None
    areas: Tensor | None = None

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


def _stated_areas(areas: Sequence[float] | None) -> NDArray[np.float64] | None:
    """Areas, 0 for what is no positive number; None where none is one."""
    if areas is None:
        return None
    stated = np.asarray(areas, np.float64)
    known = np.where(np.isfinite(stated) & (stated > 0), stated, 0.0)
    return known if known.any() else None


def _codec() -> Any:
    return need_extra("faster_coco_eval.core.mask", "dense")


def _plain(mask: Any) -> NDArray[np.uint8]:
    """A decoded mask (H, W) or (H, W, 1) as (H, W) in the order of rows."""
    values = np.asarray(mask, np.uint8)
    return np.ascontiguousarray(values[..., 0] if values.ndim == 3 else values)
