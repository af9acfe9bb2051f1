"""Our pixels against those of transformers' own image processors, for the configurations of published checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vpeft
from vpeft.data import DataWarning, Preprocessing

transformers = pytest.importorskip("transformers")

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_SHARE = {"crop_pct": 0.875, **_IMAGENET}
_CROP = {"do_center_crop": True, "crop_size": 224}
# Both resize with Pillow or torchvision's antialias; a grey level of 255, over a deviation of 0.22, at most.
TOLERANCE = 0.02

# preprocessor_config.json of the checkpoints that are named.
PUBLISHED: dict[str, dict[str, Any]] = {
    "openai/clip-vit-base-patch32": {
        "feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "resample": 3, **_CROP, **_IMAGENET,
    },
    "openai/clip-vit-large-patch14-336": {
        "feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336, "do_center_crop": True,
        "resample": 3, **_IMAGENET,
    },
    "facebook/convnext-tiny-224": {
        "feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "resample": 3, **_SHARE,
    },
    "facebook/convnext-base-384": {
        "feature_extractor_type": "ConvNextFeatureExtractor", "size": 384, "resample": 3, **_SHARE,
    },
    "facebook/deit-base-patch16-224": {
        "feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "resample": 3, **_CROP, **_IMAGENET,
    },
    "microsoft/beit-base-patch16-224": {
        "feature_extractor_type": "BeitFeatureExtractor", "size": 256, "resample": 3, **_CROP, **_HALF,
    },
    "facebook/dinov2-base": {
        "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224}, "resample": 3, **_IMAGENET,
    },
    "google/vit-base-patch16-224": {
        "feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2, **_HALF,
    },
    "google/siglip-base-patch16-224": {
        "image_processor_type": "SiglipImageProcessor", "size": {"height": 224, "width": 224}, "resample": 3, **_HALF,
    },
    "google/mobilenet_v2_1.0_224": {
        "feature_extractor_type": "MobileNetV2FeatureExtractor", "size": {"shortest_edge": 256}, "resample": 2,
        "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, **_HALF,
    },
    "microsoft/swin-tiny-patch4-window7-224": {
        "feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 3, **_IMAGENET,
    },
    "facebook/levit-128S": {
        "feature_extractor_type": "LevitFeatureExtractor", "size": 224, "resample": 3, **_CROP, **_IMAGENET,
    },
    "values from 0 to 255": {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2,
        "do_rescale": False, "image_mean": [123.0, 116.0, 103.0], "image_std": [58.0, 57.0, 57.0],
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", [(60, 120), (300, 260)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_pixels_are_those_of_the_processor(name: str, shape: tuple[int, int], tmp_path: Path) -> None:
    stated = {"do_normalize": True, "do_resize": True, **PUBLISHED[name]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    height, width = shape
    pixels = np.zeros((height, width, 3))
    pixels[..., 0], pixels[..., 1] = np.linspace(0, 255, width)[None], np.linspace(0, 255, height)[:, None]
    picture = Image.fromarray(pixels.astype(np.uint8))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")["pixel_values"][0]
    ours = Preprocessing.from_processor(stated).transform()(picture)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < TOLERANCE


def _tiny() -> dict[str, Any]:
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    return {
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**tiny)),
        "swin": transformers.SwinModel(
            transformers.SwinConfig(
                image_size=64, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
            )
        ),
        "convnext": transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32)
        ),
    }  # fmt: skip


@pytest.mark.parametrize("family", ["dinov2", "swin", "convnext"])
def test_a_checkpoint_that_says_nothing_gets_its_familys_values_and_a_warning(family: str, tmp_path: Path) -> None:
    _tiny()[family].save_pretrained(tmp_path)
    with pytest.warns(DataWarning, match=r"no preprocessor_config\.json; those of its family are used"):
        found = Preprocessing.from_model(vpeft.create_backbone(f"hf:{tmp_path}"))
    assert found.mean == (0.485, 0.456, 0.406)
    assert found.resize == ("squash" if family == "swin" else "shorter")


@pytest.mark.filterwarnings("ignore::vpeft.backbones.positions.ResizedPositions")
def test_a_model_of_any_size_gets_what_its_processor_makes(tmp_path: Path) -> None:
    _tiny()["dinov2"].save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED["facebook/dinov2-base"]))
    assert Preprocessing.from_model(vpeft.create_backbone(f"hf:{tmp_path}")).size == (224, 224)
    asked = vpeft.create_backbone(f"hf:{tmp_path}", image_size=56)
    assert Preprocessing.from_model(asked).size == (56, 56)


def test_a_model_of_one_size_keeps_it(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED["google/vit-base-patch16-224"]))
    found = Preprocessing.from_model(vpeft.create_backbone(f"hf:{tmp_path}"))
    assert found.size == (32, 32)
    assert found.transform()(Image.new("RGB", (40, 50))).shape == torch.Size([3, 32, 32])


def test_a_backbone_made_for_other_channels_says_so(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED["microsoft/swin-tiny-patch4-window7-224"]))
    found = Preprocessing.from_model(vpeft.create_backbone(f"hf:{tmp_path}", channels=4))
    assert found.mean == (0.485, 0.456, 0.406, 0.485)
    assert found.transform()(torch.rand(4, 40, 50)).shape == (4, 32, 32)
