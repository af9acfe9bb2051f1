"""The average precision of Pascal VOC 2007, against worked examples and an independent restatement."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from vpeft.tasks.voc_ap import voc_ap

# The ranking of the worked example of Padilla et al., "A survey on performance metrics for object-detection
# algorithms" (2020): 24 detections of 15 objects, best first, and which of them are right.
RIGHT = {1, 3, 10, 12, 13, 14, 22}


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows).reshape(-1, 4)


def test_the_worked_example_of_the_survey_gives_its_26_84_percent() -> None:
    objects = boxes(*((20.0 * k, 0.0, 20.0 * k + 10, 10.0) for k in range(15)))
    found, hits = [], iter(range(15))
    for rank in range(1, 25):
        found.append(
            objects[next(hits)] if rank in RIGHT else torch.tensor([1e4 + 50 * rank, 0.0, 1e4 + 50 * rank + 9, 9])
        )
    scores = torch.linspace(0.95, 0.14, 24)
    ap = voc_ap([torch.stack(found)], [scores], [objects], [torch.zeros(15, dtype=torch.bool)])
    assert ap is not None
    assert round(100 * ap, 2) == 26.84


def test_one_of_two_objects_found_without_a_mistake_reaches_six_of_eleven_levels() -> None:
    objects = boxes((0, 0, 10, 10), (50, 50, 60, 60))
    ap = voc_ap([objects[:1]], [torch.tensor([0.9])], [objects], [torch.zeros(2, dtype=torch.bool)])
    assert ap == pytest.approx(6 / 11)  # recall 0.5 is reached, 0.6 is not


def test_a_second_detection_of_an_object_is_a_mistake_and_one_of_a_difficult_object_counts_neither_way() -> None:
    objects = boxes((0, 0, 10, 10), (50, 50, 60, 60))
    twice = boxes((0, 0, 10, 10), (0, 0, 10, 10), (50, 50, 60, 60))
    scores = torch.tensor([0.9, 0.8, 0.7])
    easy, hard = torch.tensor([False, False]), torch.tensor([False, True])
    assert voc_ap([twice], [scores], [objects], [easy]) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert voc_ap([twice[[0, 2]]], [scores[[0, 2]]], [objects], [hard]) == pytest.approx(1.0)
    assert voc_ap([twice[:1]], [scores[:1]], [objects[:1]], [torch.tensor([True])]) is None


def test_an_overlap_of_one_half_is_enough() -> None:
    half = boxes((0, 0, 10, 5))
    object_ = boxes((0, 0, 10, 10))
    none = torch.tensor([False])
    assert voc_ap([half], [torch.tensor([0.5])], [object_], [none]) == pytest.approx(1.0)
    less = boxes((0, 0, 10, 4.9))
    assert voc_ap([less], [torch.tensor([0.5])], [object_], [none]) == pytest.approx(0.0)


def restated(found: list, truth: list) -> float | None:
    """The same from plain numbers: found (image, score, box), truth (image, box, difficult)."""

    def overlap(a: list[float], b: list[float]) -> float:
        wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        both = max(0.0, wide) * max(0.0, high)
        return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)

    count = sum(not hard for _, _, hard in truth)
    if count == 0:
        return None
    used: list[int] = []
    precision_at: list[tuple[float, float]] = []
    right = wrong = 0
    for image, _, box in sorted(found, key=lambda one: -one[1]):
        rivals = [(overlap(box, other), k) for k, (where, other, _) in enumerate(truth) if where == image]
        share, k = max(rivals, default=(0.0, -1), key=lambda one: one[0])
        if share >= 0.5 and truth[k][2]:
            continue
        if share >= 0.5 and k not in used:
            used.append(k)
            right += 1
        else:
            wrong += 1
        precision_at.append((right / count, right / (right + wrong)))
    levels = [max((p for r, p in precision_at if r >= level / 10 - 1e-12), default=0.0) for level in range(11)]
    return sum(levels) / 11


@pytest.mark.parametrize("seed", range(20))
def test_random_scenes_agree_with_a_restatement_in_plain_numbers(seed: int) -> None:
    draw = random.Random(seed)
    images = 6
    truth, found = [], []
    for image in range(images):
        for _ in range(draw.randrange(4)):  # some images have no object
            left, top = draw.uniform(0, 80), draw.uniform(0, 80)
            box = [left, top, left + draw.uniform(5, 30), top + draw.uniform(5, 30)]
            truth.append((image, box, draw.random() < 0.2))
            for _ in range(draw.randrange(3)):  # and some objects no detection
                found.append((image, draw.random(), [side + draw.uniform(-3, 3) for side in box]))
        for _ in range(draw.randrange(3)):
            found.append((image, draw.random(), [90.0, 90.0, 99.0, draw.uniform(95, 110)]))

    def of(image: int, rows: list, part: int) -> list:
        return [one[part] for one in rows if one[0] == image]

    made = voc_ap(
        [torch.tensor(of(k, found, 2), dtype=torch.float64).reshape(-1, 4) for k in range(images)],
        [torch.tensor(of(k, found, 1), dtype=torch.float64) for k in range(images)],
        [torch.tensor(of(k, truth, 1), dtype=torch.float64).reshape(-1, 4) for k in range(images)],
        [torch.tensor(of(k, truth, 2), dtype=torch.bool) for k in range(images)],
    )
    assert made == pytest.approx(restated(found, truth), abs=1e-12)
