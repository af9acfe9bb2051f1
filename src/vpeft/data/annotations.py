"""What readers of annotations have in common: JSON files, boxes, shapes in COCO's forms, and the sizes of images."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vpeft.data.decoding import Limits, opened_image, recognised
from vpeft.data.items import SplitName, split_of
from vpeft.data.objects import FARTHEST, Polygons, RunLengths, Shape
from vpeft.data.problems import DataError, Kind, Problems
from vpeft.guarded import MEBI, read_bytes, text_of

BoxFormat = Literal["corners", "sides"]
# COCO's largest file of boxes has 0.5 GiB, LVIS's 1.1, Objects365's 5.
_MOST_BYTES = 8192 * MEBI
# The tag of EXIF data that says how an image is turned; from 5 on, width and height change places.
_ORIENTATION, _TURNED = 274, 5


def read_json_file(file: Path) -> Any:
    """The value of a JSON file, which may hold NaN; raises `DataError`."""
    try:
        return json.loads(text_of(read_bytes(file, str(file), DataError, _MOST_BYTES), str(file), DataError))
    except (ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{file} is not usable JSON: {error}.") from None


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty, without spaces around; raises `DataError`."""
    text = text_of(read_bytes(file, str(file), DataError, 64 * MEBI), str(file), DataError)
    return [line.strip() for line in text.splitlines() if line.strip()]


def json_rows(file: Path) -> list[dict[str, Any]]:
    """The mappings of a JSONL file, one in each line, or of a JSON file that holds a list of them.

    Raises:
        DataError: a line is no JSON, or no mapping.
    """
    rows: list[Any] = []
    if file.suffix.lower() == ".json":
        told = read_json_file(file)
        rows = told if isinstance(told, list) else [None]
    else:
        for number, line in enumerate(read_lines(file), start=1):
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file}, line {number} is not usable JSON: {error}.") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number} is no mapping of names to values: {str(row)[:60]}.")
    return rows


def corners_of(numbers: Any, form: BoxFormat) -> tuple[float, float, float, float]:
    """A box as left, top, right, bottom; NaN where there are no four numbers."""
    if not isinstance(numbers, Sequence) or isinstance(numbers, str) or len(numbers) != 4:
        return (math.nan,) * 4
    if not all(_is_number(one) for one in numbers):
        return (math.nan,) * 4
    left, top, third, fourth = (float(one) for one in numbers)
    return (left, top, third, fourth) if form == "corners" else (left, top, left + third, top + fourth)


def shape_of(segmentation: Any) -> Shape | None:
    """A shape in one of COCO's forms: a list of polygons, or a run-length code; None where there is none.

    Raises:
        ValueError: it is none of these; the message says why.
    """
    if segmentation is None or (isinstance(segmentation, (list, tuple)) and not segmentation):
        return None
    if isinstance(segmentation, Mapping):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(isinstance(one, int) for one in size):
            raise ValueError("a run-length code without its size")
        if isinstance(counts, (str, bytes)):
            return RunLengths(
                size[0], size[1], counts.encode("ascii", "replace") if isinstance(counts, str) else counts
            )
        if not isinstance(counts, (list, tuple)) or not all(isinstance(one, int) for one in counts):
            raise ValueError("a run-length code without counts")
        return RunLengths(size[0], size[1], tuple(counts))
    if not isinstance(segmentation, (list, tuple)):
        raise ValueError(f"a {type(segmentation).__name__}")
    parts = [segmentation] if isinstance(segmentation[0], (int, float)) else segmentation
    usable = tuple(points for part in parts if (points := _polygon(part)) is not None)
    if not usable:
        raise ValueError(f"a polygon of fewer than three points, or with one farther out than {FARTHEST:g} pixels")
    return Polygons(usable)


def _polygon(part: Any) -> NDArray[np.float64] | None:
    """The points of a polygon, x, y, x, y, ...; None where it has fewer than three, or one that cannot be drawn."""
    try:
        points = np.array(part, np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    drawable = points.ndim == 1 and len(points) >= 6 and len(points) % 2 == 0 and (np.abs(points) <= FARTHEST).all()
    return points if drawable else None


def _is_number(one: Any) -> bool:
    """Whether a value of JSON is a number that a box may have, or NaN."""
    return isinstance(one, float) or (isinstance(one, int) and abs(one) < 2**53)


def around(shape: Shape | None) -> tuple[float, float, float, float]:
    """The box around polygons, for an object that states none; NaN for other shapes."""
    if not isinstance(shape, Polygons):
        return (math.nan,) * 4
    points = np.concatenate([part.reshape(-1, 2) for part in shape.parts])
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def image_size(file: Path) -> tuple[int, int] | None:
    """(H, W) of an image as it is shown, by its header alone; None where that cannot be read."""
    try:
        with opened_image(file, Limits()) as opened, recognised(opened, Limits()) as image:
            turned = image.getexif().get(_ORIENTATION, 1) >= _TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # decoders raise nearly anything; the check of the image says what is wrong
        return None


def split_in(words: str) -> SplitName | None:
    """The split that a name such as instances_train2017 contains as a word, or None."""
    found = (split_of(word.rstrip("0123456789")) for word in re.split(r"[^A-Za-z0-9]+", words))
    return next((split for split in found if split is not None), None)


def note_counts(problems: Problems, kind: Kind, counts: Mapping[str, int] | Iterable[str], what: str) -> None:
    """One problem for each name, with how many `what` it is about; names that come several times are counted."""
    counted = counts if isinstance(counts, Mapping) else Counter(counts)
    for name, count in counted.items():
        problems.add(kind, name, f"{count} {what}")
