"""Average precision of detections: against pycocotools on files, with crowds, empty images and other pixels."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vpeft.batch import Batch
from vpeft.tasks.object_scores import NoObjects, ObjectScores

SIDE, CLASSES = 128, 3
NAMES = {"AP": 0, "AP50": 1, "AP75": 2, "AP_small": 3, "AP_medium": 4, "AP_large": 5, "AR": 8}


def random_scenes(seed: int, images: int = 8) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Detections and targets of each image, in an image of 64 pixels a side that was 128 pixels."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, count: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    scenes = []
    for image in range(images):
        count = 0 if image == 2 else 1 + int(torch.randint(5, (), generator=generator))
        corner, sides = uniform(0, 34, 2 * count).view(-1, 2), uniform(3, 30, 2 * count).view(-1, 2)
        boxes = torch.cat([corner, corner + sides], 1).round()
        labels = torch.randint(CLASSES, (count,), generator=generator)
        crowd = torch.rand(count, generator=generator) < 0.2
        target = {"boxes": boxes, "labels": labels, "crowd": crowd, "size": (64, 64), "original": (SIDE, SIDE)}
        masks = torch.zeros(count, 64, 64, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
            mask[top : top + 2, left : left + 2] = 0  # a corner is missing
        target["masks"] = masks
        target["area"] = masks.sum((1, 2)).float() * 4
        found = boxes.repeat(2, 1) + uniform(-3, 3, 8 * count).view(-1, 4)
        found = torch.cat([found, torch.tensor([[1.0, 1.0, 20.0, 22.0]])])  # somewhere
        found = torch.cat([found[:, :2], found[:, 2:].maximum(found[:, :2] + 1)], 1)
        said = torch.cat([labels.repeat(2), torch.zeros(1, dtype=torch.int64)])
        if image == 4:  # nothing is found here
            found, said = found[:0], said[:0]
        scores = uniform(0.01, 1, len(found))
        order = scores.argsort(descending=True)
        covers = torch.ones(len(found), 1, 28, 28)
        scenes.append(
            ({"boxes": found[order], "labels": said[order], "scores": scores[order], "box_masks": covers}, target)
        )
    return scenes


def by_pycocotools(scenes: list, folder: Path, kind: str) -> list[float]:
    """The twelve numbers of pycocotools for the same scenes, written to files and read again."""
    from pycocotools import mask as codec
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def run_lengths(mask: np.ndarray) -> dict[str, Any]:
        code = codec.encode(np.asfortranarray(mask))
        return {"size": code["size"], "counts": code["counts"].decode()}

    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": k + 1} for k in range(CLASSES)]}
    answers: list[dict[str, Any]] = []
    for image, (found, target) in enumerate(scenes):
        truth["images"].append({"id": image, "height": SIDE, "width": SIDE})
        large = target["masks"].repeat_interleave(2, 1).repeat_interleave(2, 2).numpy()
        for k, (left, top, right, bottom) in enumerate((2 * target["boxes"]).tolist()):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image,
                    "category_id": int(target["labels"][k]) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(target["area"][k]),
                    "iscrowd": int(target["crowd"][k]),
                    "segmentation": run_lengths(large[k]),
                }
            )
        for k, (left, top, right, bottom) in enumerate((2 * found["boxes"]).tolist()):
            one = {"image_id": image, "category_id": int(found["labels"][k]) + 1, "score": float(found["scores"][k])}
            if kind == "bbox":
                one["bbox"] = [left, top, right - left, bottom - top]
            else:
                one["segmentation"] = run_lengths(pasted(found, k))
            answers.append(one)
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "answers.json").write_text(json.dumps(answers))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        judge = COCOeval(coco, coco.loadRes(str(folder / "answers.json")), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(value) for value in judge.stats]


def pasted(found: dict[str, Any], k: int) -> np.ndarray:
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    made = paste_masks_in_image(found["box_masks"][k : k + 1], 2 * found["boxes"][k : k + 1], (SIDE, SIDE))
    return (made[0, 0] >= 0.5).byte().numpy()


def scored(scenes: list, masks: bool = False) -> dict[str, Any]:
    metric = ObjectScores(("a", "b", "c"), masks)
    for start in range(0, len(scenes), 3):
        some = scenes[start : start + 3]
        metric.update(
            [found for found, _ in some], Batch(torch.zeros(len(some), 3, 64, 64), [true for _, true in some])
        )
    return metric.compute()


@pytest.mark.parametrize("seed", range(3))
def test_boxes_agree_with_pycocotools_on_files(seed: int, tmp_path: Path) -> None:
    scenes = random_scenes(seed)
    expected, made = by_pycocotools(scenes, tmp_path, "bbox"), scored(scenes)
    for name, place in NAMES.items():
        if expected[place] < 0:
            assert name not in made
        else:
            assert made[name] == pytest.approx(expected[place], abs=1e-5), name
    assert 0 < made["AP"] < 1 and 0 < made["VOC_AP50"] < 1
    each = [row["AP"] for row in made["per_class"] if row["AP"] >= 0]
    assert made["AP"] == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_masks_agree_with_pycocotools_on_files(tmp_path: Path) -> None:
    scenes = random_scenes(5)
    expected, made = by_pycocotools(scenes, tmp_path, "segm"), scored(scenes, masks=True)
    for name, place in NAMES.items():
        if expected[place] >= 0:
            assert made[f"mask_{name}"] == pytest.approx(expected[place], abs=1e-5), name
    assert made["AP"] == pytest.approx(scored(scenes)["AP"], abs=1e-6)


def test_detections_in_another_size_are_judged_in_the_pixels_of_the_original_image() -> None:
    scenes = random_scenes(1)
    plain = [
        (
            {**found, "boxes": 2 * found["boxes"]},
            {**true, "boxes": 2 * true["boxes"], "size": (SIDE, SIDE), "original": (SIDE, SIDE)},
        )
        for found, true in scenes
    ]
    made, same = scored(scenes), scored(plain)
    assert {k: v for k, v in made.items() if k != "per_class"} == {k: v for k, v in same.items() if k != "per_class"}


def test_no_detection_at_all_scores_nothing_and_no_object_at_all_is_refused() -> None:
    scenes = random_scenes(1)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    assert scored([(nothing, true) for _, true in scenes])["AP"] == 0
    empty = {**nothing, "crowd": torch.zeros(0, dtype=torch.bool), "size": (64, 64), "original": (64, 64)}
    with pytest.raises(NoObjects, match="None of the images has an object"):
        scored([(found, empty) for found, _ in scenes])
    # images without objects among others count by their mistakes alone
    found, true = scenes[0]
    alone, beside = scored([(found, true)])["AP"], scored([(found, true), (found, empty)])["AP"]
    assert beside <= alone


GATHERING = """
import sys

import torch
from torch import distributed

from tests.unit.tasks.test_object_scores import random_scenes, scored

rank, file = int(sys.argv[1]), sys.argv[2]
alone = scored(random_scenes(3), masks=True)
distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
together = scored(random_scenes(3)[rank::2], masks=True)
distributed.destroy_process_group()
per_class = together.pop("per_class"), alone.pop("per_class")
assert per_class[0] == per_class[1], per_class
assert set(alone) == set(together)
assert all(abs(alone[name] - together[name]) < 1e-6 for name in alone), (alone, together)
"""


@pytest.mark.slow
def test_two_processes_that_saw_half_of_the_images_each_have_the_scores_of_all(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    words = [sys.executable, "-c", GATHERING]
    both = [subprocess.Popen([*words, str(rank), str(tmp_path / "meet")], cwd=root) for rank in range(2)]
    assert [one.wait(timeout=300) for one in both] == [0, 0]
