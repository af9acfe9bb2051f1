"""Backbones for other than three channels: the first convolution by hand, in each library, and from an adapter file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.families import EVERY
from tests.families.transformers_models import vit
from vpeft.backbones.channels import BadChannels, adapt_channels, filters
from vpeft.backbones.origin import origin_of
from vpeft.cli.loaded import open_adapter
from vpeft.injection.adapter_file import read_manifest
from vpeft.methods import get

NUMBERS = (1, 2, 4, 13)
TORCHVISION = "py:torchvision.models:resnet18"


def by_hand(weight: Tensor, channels: int, rule: str) -> Tensor:
    """The filters one channel at a time."""
    red, green, blue = weight[:, 0], weight[:, 1], weight[:, 2]
    mean = (red + green + blue) / 3
    chosen = [(red, green, blue)[number % 3] if rule == "repeat" else mean for number in range(channels)]
    return torch.stack([one * 3 / channels for one in chosen], dim=1)


@pytest.mark.parametrize("rule", ["repeat", "mean"])
@pytest.mark.parametrize("channels", NUMBERS)
def test_timm(channels: int, rule: str) -> None:
    plain = vpeft.create_backbone("pocket_vit")
    model = vpeft.create_backbone("pocket_vit", channels=channels, channels_rule=rule)  # type: ignore[arg-type]
    expected = by_hand(plain.patch_embed.proj.weight, channels, rule)
    assert torch.allclose(model.patch_embed.proj.weight, expected, atol=1e-7)
    rest = {key: value for key, value in plain.state_dict().items() if key != "patch_embed.proj.weight"}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in rest.items())
    backbone = vpeft.describe(model)
    assert (backbone.inputs.channels, backbone.pixels.width) == (channels, channels)
    assert model.pretrained_cfg["input_size"][0] == channels
    tuned = vpeft.tune(model, get("lora")(rank=1), num_classes=2)
    assert tuned(backbone.inputs.example(2)).shape == (2, 2)


@pytest.mark.parametrize("channels", NUMBERS)
def test_transformers(channels: int, tmp_path: Path) -> None:
    plain = vit()
    plain.save_pretrained(tmp_path)  # type: ignore[operator]
    model = vpeft.create_backbone(f"hf:{tmp_path}", channels=channels)
    weight = model.embeddings.patch_embeddings.projection.weight
    expected = by_hand(plain.embeddings.patch_embeddings.projection.weight, channels, "repeat")
    assert torch.allclose(weight, expected, atol=1e-7)
    assert model.config.num_channels == channels
    backbone = vpeft.describe(model)
    assert backbone.pooled(backbone.inputs.example(2)).shape == (2, backbone.facts.width)


@pytest.mark.parametrize("channels", NUMBERS)
def test_torchvision(channels: int) -> None:
    torch.manual_seed(0)
    plain = vpeft.create_backbone(TORCHVISION)
    torch.manual_seed(0)
    model = vpeft.create_backbone(TORCHVISION, channels=channels, channels_rule="mean")
    assert torch.allclose(model.conv1.weight, by_hand(plain.conv1.weight, channels, "mean"), atol=1e-7)
    assert model.conv1.in_channels == channels
    with torch.no_grad():
        assert model(torch.zeros(1, channels, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("rule", ["repeat", "mean"])
def test_a_grey_image_in_all_channels_answers_as_before(rule: str) -> None:
    """Where every channel holds the same picture, the mean rule keeps the response exactly; so does repeating C, 2C."""
    plain, model = vpeft.create_backbone("pocket_vit"), vpeft.create_backbone("pocket_vit")
    adapt_channels(model, 6, rule)  # type: ignore[arg-type]
    grey = torch.randn(2, 1, *vpeft.describe(plain).inputs.size)
    with torch.no_grad():
        assert torch.allclose(model(grey.expand(-1, 6, -1, -1)), plain(grey.expand(-1, 3, -1, -1)), atol=1e-4)


def test_fresh_filters_are_the_same_each_time_and_of_the_size_that_torch_gives() -> None:
    weight = torch.randn(64, 3, 8, 8)
    torch.manual_seed(1)
    first = filters(weight, 5, "new")
    torch.manual_seed(2)
    assert torch.equal(filters(weight, 5, "new"), first) and first.shape == (64, 5, 8, 8)
    usual = nn.Conv2d(5, 64, 8).weight
    assert first.std().item() == pytest.approx(usual.std().item(), rel=0.05)
    assert first.abs().max().item() <= usual.abs().max().item() * 1.01


def test_fresh_filters_train_and_an_adapter_file_makes_the_backbone_again(tmp_path: Path) -> None:
    model = vpeft.create_backbone("pocket_vit", channels=4, channels_rule="new")
    origin = origin_of(model)
    assert origin is not None and (origin.channels, origin.fresh) == (4, ("patch_embed.proj",))
    tuned = vpeft.tune(model, get("lora")(rank=1), num_classes=2)
    trained = dict(tuned.trainable())
    assert any(value.shape == (model.embed_dim, 4, *model.patch_embed.patch_size) for value in trained.values())
    with torch.no_grad():
        for value in trained.values():
            value.add_(0.01)
    images = vpeft.describe(model).inputs.example(2)
    before = tuned.eval()(images)
    path = tuned.save(tmp_path / "four.safetensors", labels=["a", "b"])
    manifest = read_manifest(path)
    assert manifest.origin is not None and manifest.origin.channels_rule == "new"
    again = open_adapter(path).model.eval()
    assert torch.equal(again(images), before)


def test_several_convolutions_side_by_side_are_all_adapted() -> None:
    from tests.families import VARIANTS

    model = VARIANTS["repvgg"]()
    adapt_channels(model, 2)
    backbone = vpeft.describe(model)
    assert backbone.inputs.channels == 2
    assert backbone.pooled(backbone.inputs.example(2)).shape == (2, backbone.facts.width)


@pytest.mark.parametrize("name", EVERY)
def test_every_family_takes_five_channels_or_says_why_not(name: str) -> None:
    model = EVERY[name]()
    if name in ("open_clip_text", "hf_siglip2"):
        with pytest.raises(BadChannels, match="no plain convolution of the pixels"):
            adapt_channels(model, 5)
        return
    adapt_channels(model, 5)
    backbone = vpeft.describe(model)
    assert backbone.inputs.channels == 5
    with torch.no_grad():
        assert backbone.pooled(backbone.inputs.example(2)).shape == (2, backbone.facts.width)


def test_what_cannot_be_is_said() -> None:
    model = vpeft.create_backbone("pocket_vit")
    before = model.patch_embed.proj.weight
    assert adapt_channels(model, 3, "new") == () and model.patch_embed.proj.weight is before
    with pytest.raises(BadChannels, match="asked for with 17 channels; 1 to 16"):
        vpeft.create_backbone("pocket_vit", channels=17)
    with pytest.raises(BadChannels, match=r"no rule 'meen' for channels.*mean"):
        adapt_channels(model, 4, "meen")  # type: ignore[arg-type]
    with pytest.raises(BadChannels, match="make it for as many channels as you want"):
        adapt_channels(nn.Sequential(nn.Conv2d(3, 4, 1)), 4)
