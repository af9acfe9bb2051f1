"""Pictures of predictions: what is drawn lies where it was found, and programs can read the numbers back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vpeft.data.preprocessing import Preprocessing
from vpeft.drawing import (
    CELL,
    colour,
    depth_picture,
    drawn,
    index_picture,
    panel,
    plain_image,
    with_classes,
    with_objects,
)
from vpeft.task import DetectedObjects, Prediction


def objects(*, masks: bool = False, sure: int = 2) -> DetectedObjects:
    boxes = torch.tensor([[10.0, 20, 40, 50], [60, 60, 90, 95], [0, 0, 5, 5]])
    shapes = torch.zeros(3, 100, 100, dtype=torch.bool)
    shapes[0, 20:50, 10:40] = shapes[1, 60:95, 60:90] = True
    return DetectedObjects(
        boxes,
        torch.tensor([0, 3, 1]),
        ("a", "dog\nof two lines", "b"),
        torch.tensor([0.9, 0.8, 0.1]),
        shapes if masks else None,
        (100, 100),
        sure,
    )


def changed(before: Tensor, after: Tensor) -> list[list[int]]:
    """The corners of what differs: top and left, bottom and right."""
    where = (before != after).any(0).nonzero()
    return [where.amin(0).tolist(), where.amax(0).tolist()]


def test_boxes_lie_where_they_were_found_and_unsure_ones_are_not_drawn() -> None:
    image = torch.full((3, 100, 100), 128, dtype=torch.uint8)
    one = with_objects(image, objects(sure=1))
    (top, left), (bottom, right) = changed(image, one)
    assert (left, bottom, right) == (10, 50, 40) and top <= 20  # the name stands above
    assert torch.equal(one[:, 30, 10], torch.tensor(colour(0), dtype=torch.uint8))
    assert (one[:, 25:45, 15:35] == 128).all()  # nothing inside
    two = with_objects(image, objects())
    assert changed(one, two)[1][0] == 95
    assert torch.equal(with_objects(image, objects(sure=0)), image)
    assert changed(image, two)[0][0] > 5  # the third box, which is not sure, begins at 0


def test_masks_cover_their_pixels_alone() -> None:
    image = torch.full((3, 100, 100), 128, dtype=torch.uint8)
    made = with_objects(image, objects(masks=True, sure=1))
    assert (made[:, 25:45, 15:35] != 128).any(0).all()
    assert (made[:, 52:, :] == 128).all() and (made[:, :, 42:] == 128).all()


def test_where_masks_overlap_the_surest_object_has_the_pixel() -> None:
    found = objects(masks=True)
    alone = with_objects(torch.full((3, 100, 100), 128, dtype=torch.uint8), found.first(1))
    assert found.shapes is not None
    found.shapes[1, 20:50, 10:40] = True
    both = with_objects(torch.full((3, 100, 100), 128, dtype=torch.uint8), found)
    assert both[:, 35, 25].tolist() == alone[:, 35, 25].tolist() != [128, 128, 128]


def test_a_box_outside_of_the_image_is_drawn_as_far_as_it_is_inside() -> None:
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    odd = DetectedObjects(
        torch.tensor([[-20.0, 10, 500, 30], [38.0, 39.5, 60, 70]]),
        torch.tensor([0, 1]),
        ("a", "b"),
        torch.tensor([0.9, 0.9]),
        None,
        (40, 40),
        2,
    )
    assert with_objects(image, odd).shape == image.shape


def test_a_class_map_is_an_overlay_for_people_and_numbers_for_programs() -> None:
    numbers = torch.zeros(20, 30, dtype=torch.int64)
    numbers[:, 15:] = 7
    numbers[0] = 255
    image = torch.full((3, 40, 60), 200, dtype=torch.uint8)
    over = with_classes(image, numbers)
    assert over.shape == (3, 20, 30)
    assert (over[:, 0] == 200).all() and not torch.equal(over[:, 5, 3], over[:, 5, 20])
    whole = drawn(image, Prediction("a", (), map=numbers), ("land", *"bcdefg", "sea"))
    assert whole.width == 30 and whole.height > 20 + 2 * 16  # a legend of two classes
    assert np.array_equal(np.array(index_picture(numbers)), numbers.numpy())
    many = numbers + 1000
    assert np.array_equal(np.array(index_picture(many)), many.numpy())


def test_near_is_brighter_than_far_and_unknown_is_black() -> None:
    depth = torch.linspace(1, 9, 100).expand(10, 100).clone()
    depth[0] = float("nan")
    depth[1] = 0.0
    pixels = np.array(drawn(torch.zeros(3, 10, 100, dtype=torch.uint8), Prediction("a", (), map=depth)), int)
    assert pixels[5, 10].sum() > pixels[5, 50].sum() > pixels[5, 90].sum() > 0
    assert not pixels[:2].any()
    assert not np.array(depth_picture(torch.zeros(4, 5))).any()


def test_a_normalised_image_comes_back_as_it_was_without_its_bars() -> None:
    preprocessing = Preprocessing(size=(32, 32))
    picture = torch.randint(256, (3, 20, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    shown = torch.zeros(3, 32, 32)
    shown[:, :20] = (picture / 255 - mean) / std
    assert torch.equal(plain_image(shown, preprocessing, {"size": (20, 32), "original": (20, 32)}), picture)
    assert plain_image(shown, preprocessing, {"size": (20, 32), "original": (40, 64)}).shape == (3, 40, 64)
    assert plain_image(shown, preprocessing).shape == (3, 32, 32)
    grey = Preprocessing(mean=(0.5,), std=(0.5,))
    assert plain_image(torch.zeros(1, 8, 8), grey).shape == (3, 8, 8)


def test_a_panel_has_a_row_for_each_sample_and_a_column_for_each_title() -> None:
    wide, high = Image.new("RGB", (64, 32), "red"), Image.new("RGB", (32, 64), "blue")
    made = panel([("a.png", (wide, high)), ("b.png", (high, wide))], ("image", "truth"))
    assert made.width > 2 * CELL and made.height > 2 * CELL
    pixels = np.array(made)
    assert (pixels[100, 100] == [255, 0, 0]).all()  # twice as wide as high
    assert (pixels[-100, 100] == [0, 0, 255]).all() and (pixels[-100, 200] == 255).all()


def test_neighbouring_classes_have_colours_that_differ() -> None:
    colours = [colour(number) for number in range(150)]
    assert len(set(colours)) == 150
    for one, other in pairwise(colours):
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 100
