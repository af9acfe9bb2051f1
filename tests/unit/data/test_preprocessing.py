"""Our transform against timm's own for the same configuration, on pictures of many shapes."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from vpeft.data.augmentation import UnknownPolicy, policies
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.problems import DataError

# Both resize the same bytes with Pillow; only the order of dividing by 255 and normalising differs.
TOLERANCE = 1e-6

SHAPES = [(224, 224), (300, 200), (200, 301), (33, 57), (64, 64), (1, 9), (500, 111)]


def _picture(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(224, 224), (64, 64), (96, 160), (65, 65)])
@pytest.mark.parametrize(("crop_pct", "interpolation"), [(0.875, "bicubic"), (1.0, "bilinear"), (0.9, "bicubic")])
def test_equals_timm(crop_mode: str, size: tuple[int, int], crop_pct: float, interpolation: str) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    theirs = create_transform(
        (3, *size), crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation, mean=mean, std=std
    )
    how = {"center": "shorter", "squash": "squash", "border": "longer"}[crop_mode]
    ours = Preprocessing(
        size=size, resize=how, interpolation=interpolation, crop_pct=crop_pct, mean=mean, std=std
    ).transform()
    for shape in SHAPES:
        if crop_mode == "border" and min(shape) == 1:
            continue  # timm rounds the shorter side to 0 there
        picture = _picture(*shape)
        expected, seen = theirs(picture), ours(picture)
        assert seen.shape == expected.shape == (3, *size)
        assert (seen - expected).abs().max() <= TOLERANCE, shape


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224.augreg_in21k",
        "vit_small_patch14_dinov2",
        "convnext_atto",
        "swin_tiny_patch4_window7_224",
        "resnet18",
    ],
)
def test_from_model_equals_timm(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    preprocessing = Preprocessing.from_model(model)
    theirs, ours = create_transform(**resolve_model_data_config(model)), preprocessing.transform()
    for shape in ((300, 200), (200, 301)):
        picture = _picture(*shape)
        assert (ours(picture) - theirs(picture)).abs().max() <= TOLERANCE
    assert Preprocessing.model_validate_json(preprocessing.model_dump_json()) == preprocessing


def test_size_that_the_model_was_built_for() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=1)
    assert Preprocessing.from_model(model).size == (96, 96)


def test_attributes_of_torchvision_and_open_clip_models() -> None:
    model = nn.Linear(2, 2)
    model.image_size = 384  # as torchvision's VisionTransformer has it
    assert Preprocessing.from_model(model) == Preprocessing(size=(384, 384))
    model.preprocess_cfg = {"size": 240, "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3), "resize_mode": "squash"}
    expected = Preprocessing(size=(240, 240), resize="squash", crop_pct=1.0, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    assert Preprocessing.from_model(model) == expected


def test_model_that_states_nothing() -> None:
    assert Preprocessing.from_model(nn.Linear(2, 2)) == Preprocessing()


def test_model_of_one_channel() -> None:
    model = nn.Linear(2, 2)
    model.pretrained_cfg = {"input_size": (1, 28, 28), "mean": (0.1,), "std": (0.3,), "crop_pct": 1.0}
    stated = Preprocessing.from_model(model)
    assert (stated.channels, stated.mean, stated.std) == (1, (0.1,), (0.3,))
    seen = stated.transform()(torch.full((1, 40, 30), 0.7))
    assert seen.shape == (1, 28, 28)
    assert torch.allclose(seen, torch.tensor(2.0))


def test_tensor_equals_picture() -> None:
    transform = Preprocessing(size=(64, 64)).transform()
    picture = _picture(200, 301)
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(transform(tensor), transform(picture))
    with pytest.raises(DataError, match=r"float32"):
        transform(tensor.float())


def test_values() -> None:
    preprocessing = Preprocessing(size=(8, 8), crop_pct=1, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))
    seen = preprocessing.transform()(Image.new("RGB", (20, 30), (255, 0, 51)))
    assert seen[:, 0, 0].tolist() == pytest.approx([1.0, -2.0, -0.3], abs=1e-6)


@pytest.mark.parametrize("name", sorted(policies()))
@pytest.mark.parametrize("how", ["shorter", "squash", "longer"])
def test_policies(name: str, how: str) -> None:
    preprocessing = Preprocessing(size=(32, 48), resize=how, interpolation="lanczos")
    transform = preprocessing.augmented(name)
    for shape in ((100, 60), (20, 20), (9, 1)):
        picture = _picture(*shape)
        torch.manual_seed(0)
        first = transform(picture)
        torch.manual_seed(0)
        assert torch.equal(transform(picture), first)  # draws from torch's generator and no other
        assert first.shape == (3, 32, 48)
        assert first.dtype == torch.float32
        assert first.isfinite().all()
        several = [transform(picture) for _ in range(8)]
        varies = any(not torch.equal(one, first) for one in several)
        assert varies or name == "none" or shape != (100, 60)
        if name == "none":
            assert not varies
            assert torch.equal(first, preprocessing.transform()(picture))


def test_flip_mirrors_and_does_nothing_else() -> None:
    preprocessing = Preprocessing(size=(16, 16))
    picture = _picture(30, 20)
    plain = preprocessing.transform()(picture)
    seen = [preprocessing.augmented("flip")(picture) for _ in range(40)]
    mirrored = sum(torch.equal(one, plain.flip(-1)) for one in seen)
    assert mirrored + sum(torch.equal(one, plain) for one in seen) == 40
    assert 8 <= mirrored <= 32


def test_unknown_policy() -> None:
    with pytest.raises(UnknownPolicy, match="'randaugment'"):
        Preprocessing().augmented("randaug")


def test_transform_can_be_sent_to_workers() -> None:
    import pickle

    transform = Preprocessing(size=(16, 16)).augmented("randaugment")
    again = pickle.loads(pickle.dumps(transform))
    torch.manual_seed(1)
    first = transform(_picture(30, 20))
    torch.manual_seed(1)
    assert torch.equal(again(_picture(30, 20)), first)
