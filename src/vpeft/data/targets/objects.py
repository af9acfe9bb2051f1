"""Objects in an image: boxes with classes, perhaps crowds and masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vpeft.data.config import DataConfig
from vpeft.data.items import ArrayPicture, Item, in_order
from vpeft.data.joint import detection_transform
from vpeft.data.objects import ImageObjects, Objects, PixelsWithNumber
from vpeft.data.problems import DataError, Problems
from vpeft.data.target import Given, Target, known, note_unseen, register_target

if TYPE_CHECKING:
    from vpeft.data.preprocessing import Preprocessing

_NO_LIST = (
    "A list has one line for each image and cannot hold its objects. Give COCO JSON: `vpeft data export` writes it."
)


@register_target("objects")
class ObjectTargets(Target):
    """Boxes with classes; a sample carries the dict that `joint.DetectionTransform` describes."""

    given = "objects with boxes are"
    plural = "objects with boxes"
    task = "detection"
    wants = "boxes of objects"
    on_pixels = True

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        raise DataError(f"{where}: {_NO_LIST}")

    def of_table(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        names: Sequence[str],
        config: DataConfig,
        where: str,
        root: Path,
    ) -> list[Given | None]:
        raise DataError(f"{where}: {_NO_LIST}")

    def of_array(self, array: NDArray[Any], classes: Sequence[str] | None, where: str) -> list[Given]:
        """Of mappings with `boxes` (N, 4), left, top, right, bottom; `labels`, numbers or names; perhaps `crowd` and
        `masks` (N, H, W).
        """
        if array.dtype != object or not all(isinstance(one, Mapping) and "boxes" in one for one in array):
            kind = "mask" if array.ndim >= 3 else "values" if array.dtype.kind == "f" else "label"
            raise self.refused(where, kind)
        return [Given("", _of_mapping(one, classes, f"{where}[{index}]")) for index, one in enumerate(array)]

    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        used = {label for item in items for label in item.target.labels}
        return in_order(used) if not stated else [label for label in stated if label in used]

    def compare(
        self, splits: Mapping[Any, Sequence[Item]], labels: Sequence[str], stated: Iterable[str], problems: Problems
    ) -> None:
        note_unseen(self, splits, labels, stated, problems)
        if not any(len(item.target) for item in splits.get("train", ())):
            raise DataError("No training image has an object, so there is nothing to learn.")

    def strata(self, items: Sequence[Item]) -> dict[str, str]:
        """The rarest class of each image, so that no split is left without it."""
        count = Counter(label for item in items for label in set(item.target.labels))
        return {item.name: min(item.target.labels, key=lambda one: (count[one], one), default="") for item in items}

    def counts(self, items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
        """Objects per label, zeros included."""
        return super().counts(items, labels)

    def of_item(self, item: Item, labels: Sequence[str]) -> Sequence[str]:
        """The class of each object; a class comes as often as there are objects of it."""
        found: Sequence[str] = item.target.labels
        return found

    def encoder(self, labels: Sequence[str]) -> Callable[[Item], ImageObjects]:
        number = {label: place for place, label in enumerate(labels)}

        def encode(item: Item) -> ImageObjects:
            objects: Objects = item.target
            known(number, objects.labels, labels)
            return objects.numbered(number)

        return encode

    def transforms(self, preprocessing: Preprocessing, augmentation: str, training: bool) -> Callable[..., Any]:
        return detection_transform(preprocessing, training, augment=augmentation)

    def untransformed(self, drawn: Any, size: tuple[int, int]) -> dict[str, Any]:
        found = {"boxes": drawn.boxes, "labels": drawn.labels, "crowd": drawn.crowd}
        found |= {} if drawn.areas is None else {"area": drawn.areas}
        masks = drawn.masks(*size)
        return {**found, **({} if masks is None else {"masks": masks}), "size": size, "original": size}

    def list_columns(self, labels: Sequence[str]) -> list[str]:
        raise DataError(_NO_LIST)


def _of_mapping(given: Mapping[str, Any], classes: Sequence[str] | None, where: str) -> Objects:
    labels = [one if isinstance(one, str) else int(one) for one in given.get("labels", ())]
    boxes = np.asarray(given["boxes"], np.float32).reshape(-1, 4)
    if len(labels) != len(boxes):
        raise DataError(f"{where} has {len(boxes)} boxes and {len(labels)} labels.")
    wrong = [one for one in labels if isinstance(one, int) and classes is not None and not 0 <= one < len(classes)]
    if wrong and classes is not None:
        raise DataError(f"{where} has the label {wrong[0]}, and there are {len(classes)} classes.")
    names = [one if isinstance(one, str) else str(one) if classes is None else classes[one] for one in labels]
    masks = given.get("masks")
    shapes = None
    if masks is not None:
        drawn = np.asarray(masks).astype(np.uint8)
        shapes = [PixelsWithNumber(ArrayPicture(drawn, place), 1) for place in range(len(drawn))]
        if len(shapes) != len(boxes):
            raise DataError(f"{where} has {len(boxes)} boxes and {len(shapes)} masks.")
    return Objects.of(boxes.tolist(), names, crowd=given.get("crowd"), shapes=shapes)
