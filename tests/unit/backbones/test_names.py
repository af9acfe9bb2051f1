"""Names of models as the hub, timm, torchvision and open_clip write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import vpeft
from vpeft.backbones.create import UnknownModelName, UnsuitableSize
from vpeft.backbones.names import fetches_or_runs, one_form
from vpeft.backbones.origin import origin_of
from vpeft.backbones.trust import NotTrusted, Trust
from vpeft.data.preprocessing import Preprocessing

WRITTEN = {
    "vit_base_patch16_224.augreg_in21k": "vit_base_patch16_224.augreg_in21k",
    "timm/vit_tiny_patch16_224.augreg_in21k": "vit_tiny_patch16_224.augreg_in21k",
    "hf-hub:timm/vit_tiny_patch16_224": "vit_tiny_patch16_224",
    "hf_hub:timm/resnet18.a1_in1k": "resnet18.a1_in1k",
    "hf:timm/resnet18.a1_in1k": "resnet18.a1_in1k",
    "https://huggingface.co/timm/resnet18.a1_in1k": "resnet18.a1_in1k",
    "https://huggingface.co/timm/resnet18.a1_in1k/tree/main": "resnet18.a1_in1k",
    "hf_hub:someone/my_model": "hf-hub:someone/my_model",
    "hf-hub:someone/my_model@v2": "hf-hub:someone/my_model@v2",
    "local-dir:/data/model": "local-dir:/data/model",
    "google/vit-base-patch16-224": "hf:google/vit-base-patch16-224",
    "https://huggingface.co/google/vit-base-patch16-224": "hf:google/vit-base-patch16-224",
    "http://www.hf.co/google/vit-base-patch16-224?library=transformers": "hf:google/vit-base-patch16-224",
    "hf:https://huggingface.co/google/vit-base-patch16-224": "hf:google/vit-base-patch16-224",
    "hf:google/vit-base-patch16-224": "hf:google/vit-base-patch16-224",
    "torchvision:resnet18": "torchvision:resnet18",
    "torchvision/resnet18": "torchvision:resnet18",
    "ViT-B-16": "open_clip:ViT-B-16",
    "ViT-B-16/openai": "open_clip:ViT-B-16/openai",
    "ViT-B-32:laion400m_e32": "open_clip:ViT-B-32/laion400m_e32",
    "open_clip/ViT-B-16/openai": "open_clip:ViT-B-16/openai",
    "open_clip:ViT-B-16/openai": "open_clip:ViT-B-16/openai",
    "ViT-B/16": "open_clip:ViT-B-16/openai",
    "ViT-L/14@336px": "open_clip:ViT-L-14-336/openai",
    "py:models.py:make": "py:models.py:make",
    "vit_tini_patch16_224": "vit_tini_patch16_224",
}


@pytest.mark.parametrize("written", WRITTEN)
def test_a_name_has_one_form(written: str) -> None:
    assert one_form(written) == WRITTEN[written]
    assert one_form(one_form(written)) == WRITTEN[written]


def test_a_folder_is_of_the_library_that_its_configuration_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    assert one_form(str(tmp_path)) == f"local-dir:{tmp_path}"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert one_form(str(tmp_path)) == f"hf:{tmp_path}"


def test_which_names_can_lead_to_foreign_code_or_files() -> None:
    for name in ("google/vit-base-patch16-224", "hf-hub:someone/model", "py:models.py:make", "hf:someone/model"):
        assert fetches_or_runs(name)
    for name in ("vit_tiny_patch16_224", "timm/resnet18.a1_in1k", "torchvision:resnet18", "ViT-B-16/openai"):
        assert not fetches_or_runs(name)


def test_a_timm_model_of_the_hub_or_a_folder(tmp_path: Path) -> None:
    model = vpeft.create_backbone("timm/test_vit.r160_in1k", pretrained=False)
    origin = origin_of(model)
    assert origin is not None and origin.name == "test_vit.r160_in1k"
    whole = timm.create_model("test_vit", num_classes=5)
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    stated = {"architecture": "test_vit", "num_classes": 5, "pretrained_cfg": {"num_classes": 5, "classifier": "head"}}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    made = vpeft.create_backbone(f"local-dir:{tmp_path}")
    key = "blocks.0.attn.qkv.weight"
    assert torch.equal(made.state_dict()[key], whole.state_dict()[key])
    assert vpeft.describe(made).facts.width == whole.num_features


def test_a_model_of_torchvision_with_its_own_preprocessing() -> None:
    from torchvision.models import ResNet18_Weights

    model = vpeft.create_backbone("torchvision/resnet18", pretrained=False)
    origin = origin_of(model)
    assert origin is not None and origin.name == "torchvision:resnet18"
    assert vpeft.tune(model, vpeft.methods.BitFit(), num_classes=3)(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    generator = torch.Generator().manual_seed(0)
    image = Image.fromarray(torch.randint(0, 256, (300, 400, 3), generator=generator, dtype=torch.uint8).numpy())
    ours = Preprocessing.from_model(model).transform()(image)
    theirs = ResNet18_Weights.IMAGENET1K_V1.transforms()(image)
    assert ours.shape == theirs.shape and float((ours - theirs).abs().mean()) < 0.02


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:resnet19", "Did you mean 'resnet18'"),
        ("torchvision:resnet18.V7", "There are: IMAGENET1K_V1"),
        ("ViT-B-17", "open_clip has no model 'ViT-B-17'"),
        ("ViT-B-16/openaj", "has no weights 'openaj'"),
        ("local-dir:/no/such/folder", "timm finds no model of its own"),
        ("https://github.com/someone/model", "timm has no model"),
        ("x" * 5000, "timm has no model"),
    ],
)
def test_an_unknown_name_is_one_short_sentence(name: str, said: str) -> None:
    with pytest.raises(UnknownModelName) as refused:
        vpeft.create_backbone(name, pretrained=False)
    assert said in str(refused.value) and len(str(refused.value)) < 1000


def test_open_clip_needs_the_name_of_its_weights() -> None:
    with pytest.raises(UnknownModelName, match="open_clip:ViT-B-16/WEIGHTS; there are: openai"):
        vpeft.create_backbone("ViT-B-16")


def test_nothing_is_fetched_because_a_file_names_it() -> None:
    with pytest.raises(NotTrusted, match="--allow-download"):
        vpeft.create_backbone("hf-hub:someone/model", trust=Trust(code=False, download=False))


@pytest.mark.parametrize(("name", "size"), [("xcit_nano_12_p16_224", 100), ("torchvision:vit_b_16", 100)])
def test_a_size_that_the_model_does_not_take(name: str, size: int) -> None:
    with pytest.raises(UnsuitableSize, match="100 x 100"):
        vpeft.create_backbone(name, pretrained=False, image_size=size)
