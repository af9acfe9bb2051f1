"""Backbones from transformers checkpoints: folders written by `save_pretrained`, nothing from the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import vpeft
from vpeft.backbones.origin import origin_of
from vpeft.backbones.positions import ResizedPositions
from vpeft.backbones.weights import BadWeights
from vpeft.data.preprocessing import Preprocessing

transformers = pytest.importorskip("transformers")

from tests.families.transformers_models import SEQUENCE, features, vit  # noqa: E402 - needs transformers


def _saved(model: nn.Module, folder: Path) -> str:
    model.save_pretrained(folder)  # type: ignore[operator]
    return f"hf:{folder}"


def _classifier(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**{**SEQUENCE, "num_labels": 3, **options})
    return transformers.ViTForImageClassification(config).eval()  # type: ignore[no-any-return]


def test_a_folder_gives_the_features_that_its_classifier_saw(tmp_path: Path) -> None:
    model, images = _classifier(), torch.randn(2, 3, 32, 32)
    made = vpeft.create_backbone(_saved(model, tmp_path))
    backbone = vpeft.describe(made)
    assert torch.equal(backbone.pooled(images), features(model, images))
    assert isinstance(backbone.classifier, nn.Identity)
    assert backbone.facts.architecture == f"hf:{tmp_path}"
    origin = origin_of(made)
    assert origin is not None
    assert origin.name == f"hf:{tmp_path}"


def test_the_vision_half_of_clip_and_the_encoder_of_a_masked_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    text = {key: value for key, value in SEQUENCE.items() if "size" not in key or "hidden" in key}
    text |= {"intermediate_size": 16, "vocab_size": 30, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    settings = transformers.CLIPConfig(text_config=text, vision_config=SEQUENCE, projection_dim=8)
    clip = transformers.CLIPModel(settings).eval()
    made = vpeft.create_backbone(_saved(clip, tmp_path / "clip"))
    assert type(made).__name__ == "CLIPVisionModel"
    assert torch.equal(vpeft.describe(made).pooled(images), clip.vision_model(images).pooler_output)
    origin = origin_of(made)
    assert origin is not None
    assert "text_model" in origin.notes[0]
    small = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1}
    config = transformers.ViTMAEConfig(**SEQUENCE, **small, decoder_intermediate_size=8)
    made = vpeft.create_backbone(_saved(transformers.ViTMAEForPreTraining(config), tmp_path / "mae"))
    backbone = vpeft.describe(made)
    assert type(made).__name__ == "ViTMAEModel"
    assert torch.equal(backbone.pooled(images), backbone.pooled(images)), "patches are masked at random"
    with pytest.raises(vpeft.VpeftError, match=r"masks 75% of the patches.*mask_ratio=0\.0"):
        vpeft.describe(transformers.ViTMAEModel(transformers.ViTMAEConfig(**SEQUENCE)))


def test_a_checkpoint_that_lacks_or_bends_tensors_is_refused(tmp_path: Path) -> None:
    name = _saved(_classifier(), tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    lacking = next(key for key in state if key.endswith("layernorm.weight"))
    bent = next(key for key in state if key.endswith("cls_token"))
    del state[lacking]
    state[bent] = state[bent][..., :5].contiguous()
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(BadWeights, match=r"Missing: .*layernorm\.weight.*Of another shape: .*cls_token \(1, 1, 5\)"):
        vpeft.create_backbone(name)
    model = vpeft.create_backbone(name, allow=("missing", "shape"))
    origin = origin_of(model)
    assert origin is not None
    assert any("Allowed, shape" in note for note in origin.notes)
    with pytest.raises(vpeft.VpeftError, match="transformers finds no checkpoint"):
        vpeft.create_backbone(f"hf:{tmp_path}/nothing")


def test_another_image_size_resizes_the_positions(tmp_path: Path) -> None:
    name = _saved(_classifier(), tmp_path)
    with pytest.warns(
        ResizedPositions, match=r"position_embeddings\) were resized from \(1, 17, 24\) to \(1, 65, 24\)"
    ):
        model = vpeft.create_backbone(name, image_size=64)
    backbone = vpeft.describe(model)
    assert backbone.facts.image_size == (64, 64)
    assert backbone.pooled(torch.randn(1, 3, 64, 64)).shape == (1, 24)


def test_random_weights_need_no_tensors(tmp_path: Path) -> None:
    name = _saved(_classifier(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert vpeft.describe(vpeft.create_backbone(name, pretrained=False)).facts.depth == 2


@pytest.mark.parametrize(
    ("stated", "wanted"),
    [
        (
            {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            {"size": (32, 32), "resize": "squash", "interpolation": "bilinear", "mean": (0.5,) * 3, "crop_pct": 1.0},
        ),
        (
            {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True,
             "resample": 3},
            {"resize": "shorter", "interpolation": "bicubic", "crop_pct": 0.8},
        ),
        ({"size": {"shortest_edge": 32}, "crop_pct": 0.875, "resample": 3}, {"resize": "shorter", "crop_pct": 0.875}),
        ({"do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
    ],
    ids=["squashed", "cropped", "convnext", "raw"],
)  # fmt: skip
def test_preprocessing_is_the_image_processors(stated: dict[str, Any], wanted: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**stated, "image_processor_type": "ViT"}))
    found = Preprocessing.from_model(vpeft.create_backbone(_saved(vit(), tmp_path)))
    assert {key: getattr(found, key) for key in wanted} == wanted
    assert found.size == (32, 32)
