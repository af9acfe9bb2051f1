"""Found objects in the format of COCO: `vpeft predict --format coco`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpeft.cli.nothing_to_predict import NothingToPredict
from vpeft.errors import need_extra
from vpeft.task import Prediction


class CocoObjects:
    """Found objects as a document in the format of COCO: images, categories, and annotations with scores.

    Image and category ids count from 1, categories in the order of the labels, as `vpeft data export` counts them.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, prediction: Prediction) -> None:
        """Enter one image.

        Raises:
            NothingToPredict: the task does not find objects.
        """
        found = prediction.objects
        if found is None:
            raise NothingToPredict("The format coco is for objects, and this adapter's task does not find objects.")
        height, width = found.size
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": prediction.id, "height": height, "width": width})
        masks = found.masks
        sides = found.boxes.tolist()
        for place, (left, top, right, bottom) in enumerate(sides):
            one: dict[str, Any] = {
                "id": len(self.annotations) + 1,
                "image_id": number,
                "category_id": int(found.numbers[place]) + 1,
                "bbox": [round(side, 3) for side in (left, top, right - left, bottom - top)],
                "area": round((right - left) * (bottom - top), 3),
                "iscrowd": 0,
                "score": round(float(found.scores[place]), 6),
            }
            if masks is not None:
                one["segmentation"], one["area"] = run_lengths(masks[place].numpy()), int(masks[place].sum())
            self.annotations.append(one)

    def document(self) -> dict[str, Any]:
        """All of it, for JSON."""
        categories = [{"id": number, "name": label} for number, label in enumerate(self.labels, start=1)]
        return {"images": self.images, "categories": categories, "annotations": self.annotations}


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (H, W) as COCO's compressed run-length code."""
    code = need_extra("faster_coco_eval.core.mask", "dense").encode(np.asfortranarray(mask, np.uint8))
    counts = code["counts"]
    return {
        "size": [int(side) for side in code["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }
