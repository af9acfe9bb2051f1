"""Transforms of an image with its objects or maps: all of it moves together, and what a crop removes is gone in all."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, Mask

from vpeft.data import Preprocessing
from vpeft.data.augmentation import UnknownPolicy
from vpeft.data.joint import (
    CATEGORY_SHARE,
    CROP_SIDES,
    JITTER,
    changes,
    depth_transform,
    detection_transform,
    semantic_transform,
)
from vpeft.data.objects import ImageObjects
from vpeft.data.problems import DataError

HEIGHT, WIDTH = 60, 84
STEP = 3
PLAIN = Preprocessing(size=(48, 64), resize="squash", crop_pct=1.0, interpolation="bilinear")
BOXES = torch.tensor([[5, 7, 30, 22], [40, 10, 80, 55], [0, 0, 84, 60], [50, 50, 53, 52], [20, 33, 21, 60]]).float()
SETTINGS: list[dict[str, Any]] = [
    {"augment": "none"},
    {"augment": "flip"},
    {"augment": "flip", "fit": "longer"},
    {"augment": "crop+flip+photometric"},
    {"augment": "scale_jitter+flip"},
    {"augment": "scaled_crop+flip", "size": 40},
    {"augment": "scaled_crop", "size": (32, 40), "longest": 100},
    {"augment": "flip", "shortest": [40, 48, 90], "longest": 120},
    {"augment": "crop+flip", "shortest": [40, 48, 90], "longest": 120},
]


def _painted(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Masks of the pixels whose centres are in each box."""
    down, across = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    inside = (across >= boxes[:, 0, None]) & (across < boxes[:, 2, None])
    below = (down >= boxes[:, 1, None]) & (down < boxes[:, 3, None])
    return (below[:, :, None] & inside[:, None, :]).to(torch.uint8)


def _picture() -> Image.Image:
    """Red says the column, green the row."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(np.stack([columns * STEP, rows * STEP, np.full_like(rows, 128)], -1).astype(np.uint8))


def _objects() -> dict[str, Any]:
    labels = torch.arange(len(BOXES))
    return {"boxes": BOXES, "labels": labels, "crowd": labels == 2, "masks": _painted(BOXES, HEIGHT, WIDTH)}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_box_is_where_the_mask_of_that_box_is(settings: dict[str, Any]) -> None:
    transform = detection_transform(PLAIN, True, **settings)
    twice = "shortest" in settings and "crop" in settings["augment"]
    seen: set[int] = set()
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = transform(_picture(), _objects())
        boxes, masks, labels = target["boxes"], target["masks"], target["labels"]
        assert (boxes.dtype, labels.dtype, target["crowd"].dtype) == (torch.float32, torch.int64, torch.bool)
        assert type(boxes) is type(masks) is type(image) is torch.Tensor
        assert masks.shape == (len(boxes), *image.shape[-2:])
        assert len(labels) == len(boxes) == len(target["crowd"])
        assert torch.equal(target["crowd"], labels == 2)
        height, width = target["size"]
        assert boxes[:, 2].le(width).all() and boxes[:, 3].le(height).all() and boxes.ge(0).all()
        assert masks[:, height:].sum() == masks[:, :, width:].sum() == 0
        # Pixels whose centres are on an edge are a matter of rounding; masks that are resized twice, of one pixel more.
        wider = torch.tensor([-1.0, -1.0, 1.0, 1.0]) * (1.5 if twice else 0.01)
        certain = _painted(boxes + wider, *image.shape[-2:]) == _painted(boxes - wider, *image.shape[-2:])
        assert torch.equal(masks[certain], _painted(boxes, *image.shape[-2:])[certain])
        seen |= set(labels.tolist())
    assert seen == set(range(len(BOXES)))


@pytest.mark.parametrize("settings", [one for one in SETTINGS if "crop" in one["augment"]], ids=str)
def test_what_a_crop_does_not_show_is_removed_with_its_label_and_mask(settings: dict[str, Any]) -> None:
    transform = detection_transform(PLAIN, True, **settings)
    left_out = 0
    for seed in range(40):
        torch.manual_seed(seed)
        _, target = transform(_picture(), _objects())
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        sides = (target["boxes"][:, 2:] - target["boxes"][:, :2]).amin(1)
        assert (target["masks"] != 0).flatten(1).any(1)[sides >= 1].all()  # thinner ones may fall between the pixels
        assert sorted(target["labels"].tolist()) == target["labels"].tolist()
        left_out += len(BOXES) - len(target["labels"])
        assert 2 in target["labels"]  # it fills the image
    assert left_out > 10


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_image_moves_with_its_map(settings: dict[str, Any]) -> None:
    settings = {**settings, "augment": settings["augment"].replace("+photometric", "")}
    columns = torch.arange(WIDTH).expand(HEIGHT, WIDTH)
    mean, std = torch.tensor(PLAIN.mean), torch.tensor(PLAIN.std)
    for seed in range(10):
        for make, ignored in ((semantic_transform, 255.0), (depth_transform, float("nan"))):
            torch.manual_seed(seed)
            image, made = make(PLAIN, True, **settings)(_picture(), columns + (0 if ignored == 255 else 0.5))
            assert made.shape == image.shape[-2:]
            assert made.dtype == (torch.int64 if ignored == 255 else torch.float32)
            counts = made != 255 if ignored == 255 else ~torch.isnan(made)
            red = (image * std[:, None, None] + mean[:, None, None])[0] * 255 / STEP
            off = (red - made.float())[counts].abs()
            assert len(off) > 20
            # One column of the source where it is shrunk, and the blur of the filter near the border.
            assert off.median() <= 1.5 and off.quantile(0.9) <= 3
            assert (image[:, ~counts] == 0).all()


def test_the_same_numbers_are_drawn_with_and_without_objects() -> None:
    for settings in SETTINGS:
        if "scaled_crop" in settings["augment"]:
            continue  # looks at the classes
        made = []
        for given in ((), (_objects(),), (ImageObjects.none(),)):
            torch.manual_seed(3)
            found = detection_transform(PLAIN, True, **settings)(_picture(), *given)
            made.append(found if not given else found[0])
        assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_the_test_takes_no_chance_and_goes_back_to_the_original() -> None:
    for settings in SETTINGS:
        transform = pickle.loads(pickle.dumps(detection_transform(PLAIN, False, **settings)))
        first, target = transform(_picture(), _objects())
        assert torch.equal(first, transform(_picture()))
        (height, width), original = target["size"], target["original"]
        assert original == (HEIGHT, WIDTH)
        back = target["boxes"] * torch.tensor([original[1] / width, original[0] / height] * 2)
        assert torch.allclose(back, BOXES, atol=1e-4)
        if "shortest" in settings:
            assert target["size"] == (86, 120)  # 90 x 126 with a longer side of 120
        elif settings.get("fit") == "longer":
            assert (target["size"], first.shape) == ((46, 64), (3, 48, 64))
            assert (first[:, 46:] == 0).all()


def test_as_torchvision_on_its_own_types() -> None:
    plain = v2.Compose([v2.Resize((48, 64)), v2.RandomHorizontalFlip(1.0), v2.ToImage()])
    image, boxes, _ = plain(
        _picture(),
        BoundingBoxes(BOXES, format="XYXY", canvas_size=(HEIGHT, WIDTH)),  # type: ignore[call-arg]
        Mask(_painted(BOXES, HEIGHT, WIDTH)),
    )
    for seed in range(20):
        torch.manual_seed(seed)
        mine, target = detection_transform(PLAIN, True)(_picture(), _objects())
        if target["boxes"][0, 0] > 32:  # mirrored
            break
    wanted = v2.Normalize(list(PLAIN.mean), list(PLAIN.std))(v2.functional.to_dtype(image, torch.float32, scale=True))
    assert torch.allclose(mine, wanted, atol=1e-6)
    assert torch.allclose(target["boxes"], boxes.as_subclass(torch.Tensor).float(), atol=1e-4)


def test_without_change_it_is_the_preprocessing() -> None:
    image = detection_transform(PLAIN, True, augment="none")(_picture())
    assert torch.equal(image, PLAIN.transform()(_picture()))


def test_several_shorter_sides_as_in_the_protocol_of_coco() -> None:
    sides = range(480, 801, 32)
    transform = semantic_transform(Preprocessing(), True, shortest=sides, longest=1333, augment="none")
    found = set()
    for seed in range(60):
        torch.manual_seed(seed)
        height, width = transform(Image.new("RGB", (64, 48))).shape[-2:]
        assert width == int(height * 64 / 48 + 0.5)
        found.add(height)
    assert found == set(sides)
    torch.manual_seed(0)
    assert transform(Image.new("RGB", (400, 100))).shape[-1] == 1333


def test_half_of_the_crops_come_first_and_are_scaled_with_the_sides() -> None:
    transform = detection_transform(PLAIN, True, shortest=400, augment="crop")
    ratios = []
    for seed in range(60):
        torch.manual_seed(seed)
        height, width = transform(_picture(), ImageObjects.none())[1]["size"]
        assert min(height, width) == 400
        ratios.append(width / height)
    whole = sum(abs(ratio - WIDTH / HEIGHT) < 0.01 for ratio in ratios)
    assert 18 <= whole <= 42
    assert min(ratios) >= CROP_SIDES[0] / CROP_SIDES[1] - 0.02
    assert max(ratios) <= CROP_SIDES[1] / CROP_SIDES[0] + 0.02


def test_the_scale_jitter_reaches_from_a_tenth_to_twice() -> None:
    transform = detection_transform(PLAIN, True, augment="scale_jitter")
    shares = []
    for seed in range(200):
        torch.manual_seed(seed)
        image, target = transform(_picture(), _objects())
        assert image.shape == (3, 48, 64)
        assert target["size"][0] <= 48 and target["size"][1] <= 64
        shares.append(target["size"][1] / 64)
    assert min(shares) == pytest.approx(JITTER[0], abs=0.03)
    assert 0.4 < sum(share == 1.0 for share in shares) / len(shares) < 0.65  # (2 - 1) / (2 - 0.1)


def test_no_class_fills_most_of_a_crop() -> None:
    numbers = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    numbers[:, 56:] = 1
    transform = semantic_transform(PLAIN, True, size=24, augment="scaled_crop")
    plain = 0
    for seed in range(40):
        torch.manual_seed(seed)
        counts = torch.bincount(transform(_picture(), numbers)[1].flatten().clamp(max=2), minlength=3)[:2]
        plain += counts.max() / counts.sum() >= CATEGORY_SHARE
    # The whole image follows the rule, and more than a third of the windows at twice the scale do not.
    assert plain <= 1
    assert semantic_transform(PLAIN, True, size=24, augment="scaled_crop")(_picture(), numbers * 0)[1].max() in (0, 255)


def test_photometric_changes_colours_alone() -> None:
    plain, changed = (
        detection_transform(PLAIN, True, augment=augment)(_picture(), _objects()) for augment in ("none", "photometric")
    )
    for seed in range(5):
        torch.manual_seed(seed)
        changed = detection_transform(PLAIN, True, augment="photometric")(_picture(), _objects())
        assert torch.equal(plain[1]["masks"], changed[1]["masks"])
        if not torch.equal(plain[0], changed[0]):
            return
    raise AssertionError("no colour changed")


def test_other_channels() -> None:
    preprocessing = Preprocessing(size=(24, 32), mean=(0.5,), std=(0.5,))
    image = torch.rand(1, HEIGHT, WIDTH)
    made, target = detection_transform(preprocessing, True, augment="crop+flip")(image, _objects())
    assert made.shape == (1, 24, 32)
    assert target["masks"].shape[1:] == (24, 32)
    with pytest.raises(DataError, match="1 channels"):
        detection_transform(preprocessing, True, augment="photometric")


def test_no_objects_pass_every_transform() -> None:
    for settings in SETTINGS:
        image, target = detection_transform(PLAIN, True, **settings)(_picture(), ImageObjects.none())
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == target["crowd"].shape == (0,)
        assert "masks" not in target
        empty = {"boxes": [], "labels": [], "masks": torch.zeros(0, HEIGHT, WIDTH)}
        image, target = detection_transform(PLAIN, True, **settings)(_picture(), empty)
        assert target["masks"].shape == (0, *image.shape[-2:])


def test_tight_masks_have_their_boxes() -> None:
    torch.manual_seed(1)
    _, target = detection_transform(PLAIN, True, augment="crop+flip")(_picture(), _objects())
    around = masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1])
    assert (around - target["boxes"]).abs().max() <= 1


def test_sentences() -> None:
    with pytest.raises(UnknownPolicy, match="no change 'flop' .* Did you mean 'flip'"):
        detection_transform(PLAIN, True, augment="flop")
    with pytest.raises(DataError, match="crop and scale_jitter both choose the scale"):
        detection_transform(PLAIN, True, augment="crop+scale_jitter")
    with pytest.raises(DataError, match="give one of both"):
        detection_transform(PLAIN, True, size=4, shortest=5)
    with pytest.raises(DataError, match="needs the size"):
        detection_transform(PLAIN, True, shortest=5, augment="scale_jitter")
    with pytest.raises(DataError, match="differ in number"):
        detection_transform(PLAIN, True)(_picture(), {"boxes": BOXES, "labels": [1]})
    with pytest.raises(DataError, match="do not lie on an image"):
        detection_transform(PLAIN, True)(_picture(), {**_objects(), "masks": torch.zeros(5, 3, 3)})
    with pytest.raises(DataError, match="does not lie on an image"):
        semantic_transform(PLAIN, True)(_picture(), torch.zeros(3, 3))
    assert set(changes()) == {"none", "flip", "photometric", "crop", "scale_jitter", "scaled_crop", "turn", "zoom"}
